"""The progress of loading a model's weights into vLLM.

vLLM loads them in its own processes and reports nothing meanwhile. It accepts a registered loader: ours is vLLM's
default one, and counts the tensors that pass through it against the headers of the files.

    vLLM's worker process                       replica
    weights ─→ WeightsCount ─→ send_progress ══ datagrams ══→ EngineSocket ─→ LoadContext.report
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from deployments.vllm_runtime.engine_socket import send_progress
from deployments.vllm_runtime.mistral_files import WEIGHTS, has_mistral_weights
from deployments.vllm_runtime.private_api import PROGRESS_LOADER, fits
from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.safetensors_header import read_safetensors_header
from rbee_serve.model_files.weight_files import weights_in
from rbee_serve.state import LoadProgress

LOAD_FORMAT = "rbee_serve"
"""The loader's name in vLLM (`load_format`)."""

_LAYER = re.compile(r"(?P<stack>[^\d.][\w.]*?)\.(?P<number>\d+)\.")


class WeightsCount:
    """Which of a model's weights have been read. `sizes` are all of them by name, in bytes."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self._sizes = dict(sizes)
        self._missing = Counter(layer for name in sizes if (layer := layer_of(name)))
        self._bytes_total = sum(sizes.values())
        self._layers_total = len(self._missing)
        self._bytes_done = 0

    def read(self, name: str) -> None:
        """Count a tensor. An unknown or repeated one counts nothing."""
        size = self._sizes.pop(name, None)
        if size is None:
            return
        self._bytes_done += size
        if layer := layer_of(name):
            self._missing[layer] -= 1

    def progress(self, memory_bytes: int) -> LoadProgress:
        """The progress so far; a layer counts when all of its tensors have been read."""
        return LoadProgress(
            stage="loading_to_vram",
            bytes_done=self._bytes_done,
            bytes_total=self._bytes_total,
            layers_loaded=sum(left == 0 for left in self._missing.values()) if self._layers_total else None,
            layers_total=self._layers_total or None,
            vram_mb=memory_bytes // 1_000_000,
        )


def layer_of(name: str) -> str | None:
    """The layer of a tensor: `model.layers.3` of `model.layers.3.mlp.down_proj.weight`."""
    match = _LAYER.match(name)
    return f"{match['stack']}.{match['number']}" if match else None


def sizes_of(folder: Path) -> dict[str, int]:
    """Every tensor in a folder that vLLM reads, in bytes; empty if they cannot be read."""
    try:
        names = [file.name for file in folder.glob(WEIGHTS)] or weights_in(folder).names
        headers = [read_safetensors_header(folder / name) for name in names if "/" not in name]
    except ConfigurationError:  # the engine fails on them next, with a better message
        return {}
    return {tensor.name: tensor.size_bytes for header in headers for tensor in header.tensors}


def load_format(folder: Path) -> str:
    """The `load_format` for a model's folder: our loader, or vLLM's own for safetensors where the installed vLLM does
    not fit ours."""
    return LOAD_FORMAT if fits(PROGRESS_LOADER) else _vllm_format(folder)


def _vllm_format(folder: Path) -> str:
    return "mistral" if has_mistral_weights(folder) else "safetensors"


@functools.cache
def register_loader() -> None:
    """Register `LOAD_FORMAT` with vLLM in this process, once, if vLLM fits (`PROGRESS_LOADER`)."""
    if not fits(PROGRESS_LOADER):
        return
    from vllm.config.utils import replace
    from vllm.model_executor.model_loader import DefaultModelLoader, register_model_loader

    base: Any = DefaultModelLoader

    class ReportingLoader(base):  # type: ignore[misc] # vLLM is not checked
        """vLLM's own loader, with progress, and for safetensors only: the default one reads a pickle where it finds
        nothing else."""

        def __init__(self, load_config: Any) -> None:
            super().__init__(replace(load_config, load_format="safetensors"))

        def download_model(self, model_config: Any) -> None:
            self._set_format(Path(model_config.model))
            super().download_model(model_config)

        def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, Any]]:
            folder = Path(model_config.model)
            self._set_format(folder)
            weights = super().get_all_weights(model_config, model)
            return _counted(weights, WeightsCount(sizes_of(folder)))

        def _set_format(self, folder: Path) -> None:
            self.load_config.load_format = _vllm_format(folder)

    register_model_loader(LOAD_FORMAT)(ReportingLoader)


def _counted(weights: Iterable[tuple[str, Any]], count: WeightsCount) -> Iterator[tuple[str, Any]]:
    """`weights`, with progress sent by the worker process of rank 0: each one reads all weights, for its own part."""
    from vllm.distributed.parallel_state import get_world_group

    reports = get_world_group().rank == 0
    for name, tensor in weights:
        yield name, tensor
        count.read(name)  # vLLM requests the next tensor after it has stored this one
        if reports:
            send_progress(count.progress(_memory_bytes()))
    if reports:
        send_progress(LoadProgress(stage="preparing_engine"))


def _memory_bytes() -> int:
    """Bytes of this process: GPU memory if there is a GPU, else RAM."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    return int(psutil.Process().memory_info().rss)
