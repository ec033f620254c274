"""Download of a model from the Hugging Face Hub into the usual Hugging Face cache.

Only the files to load are downloaded: safetensors, or the one GGUF, or a CTranslate2 model, with configuration and
tokenizer; never a pickle, and no weights twice (`weight_files`). If the Hub cannot be reached, a cached copy is used.
"""

from __future__ import annotations

import glob
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rbee_serve.errors import ConfigurationError, InsufficientResources
from rbee_serve.model_files.download_space import disk_full, reserved_space
from rbee_serve.model_files.hub_errors import hub_error, is_disk_full
from rbee_serve.model_files.hub_requests import limit_requests
from rbee_serve.model_files.json_file import read_json
from rbee_serve.model_files.model_ref import HubModel
from rbee_serve.model_files.weight_files import Read, refuse_mistral_layout, weights_to_load
from rbee_serve.state import LoadProgress

logger = logging.getLogger(__name__)

SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.vocab")
"""Configuration, tokenizers and chat templates."""


def download(
    model: HubModel,
    report: Callable[[LoadProgress], None],
    *,
    variant_for: str | None = None,
    hub_cache: Path | None = None,
    endpoint: str | None = None,
) -> Path:
    """The local folder with the model's files; downloads the missing ones.

    `report` gets the stage `downloading` with the bytes present and in total. `variant_for` is the dtype of a loader
    that can load a variant of the weights (`weight_files`). `hub_cache` and `endpoint` are huggingface_hub's own
    (`HF_HUB_CACHE`, `HF_ENDPOINT`) if None. Raises `ConfigurationError` with what to do, or `InsufficientResources` if
    the disk is too small.
    """
    import huggingface_hub as hub

    limit_requests()
    cache = Path(hub_cache or hub.constants.HF_HUB_CACHE)
    try:
        info = hub.HfApi(endpoint=endpoint).model_info(model.repo, revision=model.revision, files_metadata=True)
    except Exception as exc:
        if (cached := _cached(model, cache)) is not None:
            logger.warning("hf:%s cannot be looked up on the Hub (%s); using the cached copy", model.repo, exc)
            return cached
        raise hub_error(model, cache, exc) from exc

    def read(name: str) -> Mapping[str, Any]:
        path = hub.hf_hub_download(model.repo, name, revision=info.sha, cache_dir=cache, endpoint=endpoint)
        return read_json(Path(path))

    sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    names: list[str] = []
    try:
        names = files_to_download(model, sizes, read, variant_for)
        missing = _missing(model, info.sha, names, cache)
        total, needed = _bytes(names, sizes), _bytes(missing, sizes)
        cached = _cached(model, cache)
        if not missing and cached is not None and cached.name == info.sha:
            report(LoadProgress(stage="downloading", bytes_done=total, bytes_total=total))
            return cached
        with reserved_space(cache, model.repo, needed) as still_to_fetch:
            return Path(
                hub.snapshot_download(
                    model.repo,
                    revision=model.revision,  # by name, so that the cache finds it by name without the Hub
                    cache_dir=cache,
                    endpoint=endpoint,
                    allow_patterns=[glob.escape(name) for name in names],
                    tqdm_class=_progress_bar(report, total - needed, total, still_to_fetch),
                )
            )
    except (ConfigurationError, InsufficientResources):
        raise
    except Exception as exc:
        if is_disk_full(exc):
            raise disk_full(cache, model.repo, _bytes(_missing(model, info.sha, names, cache), sizes)) from exc
        raise hub_error(model, cache, exc) from exc


def _missing(model: HubModel, commit: str, names: Iterable[str], cache: Path) -> list[str]:
    """Those of the files that the cache does not have."""
    from huggingface_hub import try_to_load_from_cache

    return [
        name
        for name in names
        if not isinstance(try_to_load_from_cache(model.repo, name, cache_dir=cache, revision=commit), str)
    ]


def _bytes(names: Iterable[str], sizes: Mapping[str, int]) -> int:
    return sum(sizes[name] for name in names)


def files_to_download(
    model: HubModel, sizes: Mapping[str, int], read: Read | None = None, variant_for: str | None = None
) -> list[str]:
    """The files to load of a repository, whose files are given with their sizes in bytes.

    `read` returns the content of a JSON file of the repository, `variant_for` is as in `download`. Raises
    `ConfigurationError` if it has no weights in an accepted format, or several GGUF files.
    """
    found = weights_to_load(sizes, read, variant_for)
    if found.missing:
        raise ConfigurationError(
            f"model_ref: hf:{model.repo} lacks {found.missing[0]}, which its index names; choose another revision"
        )
    refuse_mistral_layout(sizes, f"model_ref: hf:{model.repo}")
    weights = list(found.names)
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


def _cached(model: HubModel, cache: Path) -> Path | None:
    import huggingface_hub as hub

    # Without patterns: `resolve` and `prepare` check every folder for completeness.
    try:
        return Path(
            hub.snapshot_download(
                model.repo, revision=model.revision, cache_dir=cache, local_files_only=True, allow_patterns=[]
            )
        )
    except Exception:
        return None


def _progress_bar(
    report: Callable[[LoadProgress], None], cached: int, total: int, still_to_fetch: Callable[[int], None]
) -> Any:
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
                    still_to_fetch(total - done)
                report(LoadProgress(stage="downloading", bytes_done=done, bytes_total=total))
            return None

    report(LoadProgress(stage="downloading", bytes_done=cached, bytes_total=total))
    return ReportingBar
