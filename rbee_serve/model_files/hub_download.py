"""A model from the Hugging Face Hub, into the usual Hugging Face cache.

Only what is loaded is fetched: safetensors, or the one GGUF, or a CTranslate2 model, with configuration and tokenizer;
never a pickle, and nothing twice. Where the Hub cannot be reached, a copy in the cache serves as well. Every exception
of `huggingface_hub` becomes a sentence here and nowhere else.
"""

from __future__ import annotations

import errno
import glob
import importlib
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
    """The local folder with the model's files, fetched now where they are missing.

    `report` is told `downloading` with the bytes that are here and in all. `hub_cache` and `endpoint` are
    huggingface_hub's own (`HF_HUB_CACHE`, `HF_ENDPOINT`) if None. Raises `ConfigurationError` with what to do, or
    `InsufficientResources` where the disk is too small.
    """
    hub: Any = importlib.import_module("huggingface_hub")
    try:
        info = hub.HfApi(endpoint=endpoint).model_info(model.repo, revision=model.revision, files_metadata=True)
    except Exception as exc:
        if (cached := _cached(hub, model, hub_cache)) is not None:
            logger.warning("hf:%s: the Hub does not answer (%s), the copy in the cache is used", model.repo, exc)
            return cached
        raise _translated(model, exc) from exc
    sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    wanted = wanted_files(model, sizes)
    here = {
        name
        for name in wanted
        if isinstance(hub.try_to_load_from_cache(model.repo, name, cache_dir=hub_cache, revision=info.sha), str)
    }
    total, cached_bytes = sum(sizes[name] for name in wanted), sum(sizes[name] for name in here)
    _check_disk(model, total - cached_bytes, Path(hub_cache or hub.constants.HF_HUB_CACHE))
    try:
        return Path(
            hub.snapshot_download(
                model.repo,
                revision=model.revision,  # by its name, so that the cache knows it by that name without the Hub
                cache_dir=hub_cache,
                endpoint=endpoint,
                allow_patterns=[glob.escape(name) for name in wanted],
                tqdm_class=_progress_bar(report, cached_bytes, total),
            )
        )
    except Exception as exc:
        raise _translated(model, exc) from exc


def wanted_files(model: HubModel, sizes: Mapping[str, int]) -> list[str]:
    """Of all files of a repository, by size in bytes, those that are loaded.

    Raises `ConfigurationError` if there are no weights that could be, or several GGUFs to choose from.
    """
    weights = [name for name in sizes if name.endswith(".safetensors")]
    if "model_index.json" in sizes:  # a diffusers pipeline: its parts are in folders, single files repeat them
        weights = [name for name in weights if "/" in name] or weights
    # The same weights in another precision or in another library's layout.
    weights = [name for name in weights if not (name.endswith(".fp16.safetensors") and _plain(name) in weights)]
    if len(others := [name for name in weights if not fnmatch(name, "consolidated*")]):
        weights = others
    if not weights:
        weights = [name for name in sizes if name.endswith(".gguf")]
        if len(weights) > 1:
            raise ConfigurationError(
                f"model_ref: hf:{model.repo} has {len(weights)} GGUF files, such as {min(weights)}; download the one"
                " that you want and write file:PATH"
            )
    if not weights:
        weights = [
            name for name in sizes if name == "model.bin"
        ]  # CTranslate2's; its header is read before its content
    if not weights:
        raise ConfigurationError(
            f"model_ref: hf:{model.repo} has neither safetensors nor GGUF weights; pickles (.bin, .pt, .ckpt) are"
            " never loaded, so choose a repository or revision with safetensors"
        )
    return [*weights, *(name for name in sizes if any(fnmatch(name, pattern) for pattern in SMALL_FILES))]


def _plain(name: str) -> str:
    return name.removesuffix(".fp16.safetensors") + ".safetensors"


def _cached(hub: Any, model: HubModel, hub_cache: Path | None) -> Path | None:
    # No pattern: whether the weights are complete is checked with every other folder, in `model_files`.
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
            " free; free some, or let HF_HOME name another disk"
        )


def _progress_bar(report: Callable[[LoadProgress], None], cached: int, total: int) -> Any:
    """A tqdm class that reports instead of drawing."""
    tqdm: Any = importlib.import_module("tqdm.auto").tqdm
    lock = threading.Lock()
    seen = 0

    class ReportingBar(tqdm):  # type: ignore[misc]
        """huggingface_hub makes several bars: of files, and of bytes received and written, which may both count."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            self._counts_bytes, self._bytes = kwargs.get("unit") == "B", 0
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal seen
            if self._counts_bytes:
                with lock:
                    self._bytes += int(n or 0)
                    seen = max(seen, self._bytes)
                    done = min(cached + seen, total)
                report(LoadProgress(stage="downloading", bytes_done=done, bytes_total=total))
            return None

    report(LoadProgress(stage="downloading", bytes_done=cached, bytes_total=total))
    return ReportingBar


def _translated(model: HubModel, error: Exception) -> ConfigurationError:
    errors: Any = importlib.import_module("huggingface_hub.errors")
    name = f"model_ref: hf:{model.repo}"
    logger.warning("%s could not be fetched: %s: %s", name, type(error).__name__, error)
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
            f"{name} is not in the cache, and HF_HUB_OFFLINE is set; unset it, or fetch the model with `hf download"
            f" {model.repo}` where there is a network"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return ConfigurationError(f"{name} could not be fetched, the Hub answered {status}; try again later")
    if getattr(error, "errno", None) == errno.ENOSPC:
        return ConfigurationError(f"{name} filled the disk; free some, or let HF_HOME name another disk")
    return ConfigurationError(
        f"{name} is not in the cache and could not be fetched from the Hugging Face Hub; check the network, or use"
        " file:PATH or pkg:PACKAGE/PATH"
    )
