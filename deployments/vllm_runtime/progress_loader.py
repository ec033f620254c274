"""Tells how far vLLM is with a model's weights.

vLLM reads them in its own processes and says nothing meanwhile. It lets a loader be registered there: ours is vLLM's
default one, and counts what passes through it against what the files' headers promise.

    vLLM's process                                     the replica
    weights ─→ WeightsCount ─→ tell ══ datagrams ══→ listening ─→ LoadContext.report
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil

from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.safetensors_header import read_safetensors_header
from rbee_serve.state import LoadProgress

LOAD_FORMAT = "rbee_serve"
"""The name under which vLLM knows the loader (`load_format`)."""

LISTENER = "RBEE_SERVE_LOAD_LISTENER"
"""Environment variable that tells the engine's processes where the replica listens."""

_LAYER = re.compile(r"(?P<stack>[^\d.][\w.]*?)\.(?P<number>\d+)\.")
_MAX_MESSAGE_BYTES = 4096


class WeightsCount:
    """Which of a model's weights have been read. `sizes` are all of them by name, in bytes."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self._sizes = dict(sizes)
        self._missing = Counter(layer for name in sizes if (layer := layer_of(name)))
        self._bytes_total = sum(sizes.values())
        self._layers_total = len(self._missing)
        self._bytes_done = 0

    def read(self, name: str) -> None:
        """A tensor has been read. One that is not known, or comes again, counts for nothing."""
        size = self._sizes.pop(name, None)
        if size is None:
            return
        self._bytes_done += size
        if layer := layer_of(name):
            self._missing[layer] -= 1

    def progress(self, memory_bytes: int) -> LoadProgress:
        """How far the load is; a layer counts when all of its tensors have been read."""
        return LoadProgress(
            stage="loading_to_vram",
            bytes_done=self._bytes_done,
            bytes_total=self._bytes_total,
            layers_loaded=sum(left == 0 for left in self._missing.values()) if self._layers_total else None,
            layers_total=self._layers_total or None,
            vram_mb=memory_bytes // 1_000_000,
        )


def layer_of(name: str) -> str | None:
    """The layer that a tensor belongs to: `model.layers.3` of `model.layers.3.mlp.down_proj.weight`."""
    match = _LAYER.match(name)
    return f"{match['stack']}.{match['number']}" if match else None


def sizes_of(folder: Path) -> dict[str, int]:
    """Every tensor of the safetensors in a folder, in bytes; nothing where they cannot be read."""
    try:
        headers = [read_safetensors_header(file) for file in sorted(folder.glob("*.safetensors"))]
    except ConfigurationError:  # the engine is about to find out, and says it better
        return {}
    return {tensor.name: tensor.size_bytes for header in headers for tensor in header.tensors}


def tell(progress: LoadProgress) -> None:
    """From an engine's process to the replica that started it, if one listens. Never waits and never fails."""
    with suppress(OSError, KeyError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.setblocking(False)
        line.sendto(msgspec.json.encode(progress), os.environ[LISTENER])


@contextmanager
def listening(report: Callable[[LoadProgress], None]) -> Iterator[None]:
    """While the block runs, what the engine's processes `tell` goes to `report`, from a thread."""
    folder = Path(tempfile.mkdtemp(prefix="rbee-"))  # only its owner can enter, so nobody else can speak here
    line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    line.bind(str(folder / "load"))
    os.environ[LISTENER] = str(folder / "load")
    decoder = msgspec.json.Decoder(LoadProgress)

    def listen() -> None:
        while message := line.recv(_MAX_MESSAGE_BYTES):
            with suppress(msgspec.DecodeError):
                report(decoder.decode(message))

    thread = threading.Thread(target=listen, name="load-listener", daemon=True)
    thread.start()
    try:
        yield
    finally:
        del os.environ[LISTENER]
        line.shutdown(socket.SHUT_RD)  # ends the thread's wait
        thread.join()
        line.close()
        shutil.rmtree(folder, ignore_errors=True)


def register_loader() -> None:
    """Make `LOAD_FORMAT` known to vLLM in this process."""
    loaders = importlib.import_module("vllm.model_executor.model_loader")
    default: Any = loaders.DefaultModelLoader
    replace = importlib.import_module("vllm.config.utils").replace

    class ReportingLoader(default):  # type: ignore[misc] # vLLM is not checked
        """vLLM's own loader, which tells how far it is, and reads safetensors only: the default one takes a pickle
        where it finds nothing else."""

        def __init__(self, load_config: Any) -> None:
            super().__init__(replace(load_config, load_format="safetensors"))

        def download_model(self, model_config: Any) -> None:
            self._choose(Path(model_config.model))
            super().download_model(model_config)

        def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, Any]]:
            folder = Path(model_config.model)
            self._choose(folder)
            weights = super().get_all_weights(model_config, model)
            return _counted(weights, WeightsCount(sizes_of(folder)))

        def _choose(self, folder: Path) -> None:
            if any(folder.glob("consolidated*.safetensors")):  # as Mistral names its own; vLLM prefers those too
                self.load_config.load_format = "mistral"

    if LOAD_FORMAT not in loaders._LOAD_FORMAT_TO_MODEL_LOADER:
        loaders.register_model_loader(LOAD_FORMAT)(ReportingLoader)


def _counted(weights: Iterable[tuple[str, Any]], count: WeightsCount) -> Iterator[tuple[str, Any]]:
    """`weights`, told of by the first of the engine's processes: each reads all of them, for its own part."""
    speaks = importlib.import_module("vllm.distributed.parallel_state").get_world_group().rank == 0
    for name, tensor in weights:
        yield name, tensor
        count.read(name)  # vLLM comes back for the next one when it has stored this one
        if speaks:
            tell(count.progress(_memory_bytes()))
    if speaks:
        tell(LoadProgress(stage="preparing_engine"))


def _memory_bytes() -> int:
    """What this process holds: on the GPU where there is one, else in RAM."""
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    return int(psutil.Process().memory_info().rss)
