"""Failures of a download from the Hugging Face Hub as sentences for the operator. The exceptions of huggingface_hub are
mapped here and nowhere else."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.model_ref import HubModel

logger = logging.getLogger(__name__)

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR})

LOG_IN = "set HF_TOKEN to a token that may read it, or log in with `hf auth login`"
"""The remedy for a repository that not everybody may read."""


def is_disk_full(error: BaseException) -> bool:
    """Whether a disk without space caused the failure. The Xet library reports it in its message only."""
    cause: BaseException | None = error
    while cause is not None:
        if (isinstance(cause, OSError) and cause.errno in _DISK_FULL) or "No space left on device" in str(cause):
            return True
        cause = cause.__cause__
    return False


def hub_error(model: HubModel, cache: Path, error: Exception) -> ConfigurationError:
    """The error for a failed request or download. `cache` is the folder that it was to be written to."""
    from huggingface_hub import errors, get_token

    name = f"model_ref: hf:{model.repo}"
    logger.warning("%s could not be downloaded: %s: %s", name, type(error).__name__, error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return ConfigurationError(
            f"{name} is gated; accept its terms at https://huggingface.co/{model.repo}, then {LOG_IN}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ConfigurationError(f"{name} is not on the Hugging Face Hub, or is private; check the name, or {LOG_IN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return ConfigurationError(f"{name} has no revision {model.revision}; name a branch, a tag or a commit")
    if isinstance(error, errors.DisabledRepoError):
        return ConfigurationError(f"{name} is disabled on the Hugging Face Hub; choose another model")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ConfigurationError(
            f"{name} is not in the cache, and HF_HUB_OFFLINE is set; unset it, or run `hf download {model.repo}`"
            " with a network"
        )
    if status == 401 and get_token() is not None:
        return ConfigurationError(
            f"{name}: the token in HF_TOKEN, or of `hf auth login`, is refused by the Hub; replace it by a valid one"
        )
    if status in (401, 403):
        return ConfigurationError(f"{name} may not be read with this access to the Hub; {LOG_IN}")
    if status is not None:
        return ConfigurationError(f"{name} could not be downloaded, the Hub returned status {status}; try again later")
    if isinstance(error, OSError) and error.filename is not None and error.errno in _NOT_WRITABLE:
        return ConfigurationError(f"{name} cannot be written to {cache}; set HF_HOME to a folder that can be written")
    return ConfigurationError(
        f"{name} is not in the cache and could not be downloaded from the Hugging Face Hub; check the network, or use"
        " file:PATH or pkg:PACKAGE/PATH"
    )
