"""A worker type that records its progress and its close in files of the folder `engine.folder`."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator
from itertools import count
from pathlib import Path
from typing import Any

from rbee_serve.worker import (
    Event,
    InferenceBackend,
    InferenceRequest,
    LoadContext,
    LoadProgress,
    Progress,
    TokenOutput,
    WorkerSpec,
)
from tests.gpus.fake_torch_cuda import FakeTorchCuda


class ForeignError(Exception):
    """An exception that cannot be unpickled, as some libraries have them."""

    def __init__(self, file: str, line: int) -> None:
        super().__init__(f"{file}:{line}")


class OutOfMemoryError(RuntimeError):
    """As torch's is called."""


class RecordingBackend(InferenceBackend[InferenceRequest, TokenOutput]):
    def __init__(self, context: LoadContext) -> None:
        self._engine: dict[str, Any] = context.worker.engine
        self._watchdog = context.watchdog

    async def execute(self, request: InferenceRequest) -> AsyncGenerator[Event[TokenOutput], None]:
        if self._engine.get("cancelled_elsewhere"):
            raise asyncio.CancelledError
        if text := self._engine.get("raises"):
            raise RuntimeError(text)
        folder = Path(self._engine["folder"])
        try:
            if self._engine.get("block"):
                (folder / "blocked").touch()
                time.sleep(60)  # noqa: ASYNC251  (blocks the event loop)
            for step in count(1):
                with self._watchdog.working():
                    await asyncio.sleep(self._engine.get("wait_s", 0))
                    self._watchdog.step()
                (folder / "step").write_text(str(step))
                yield Progress(step=step, total=1_000_000)
        finally:
            (folder / "cancelled").touch()

    def memory_bytes(self) -> int:
        return 0

    def close(self) -> None:
        if folder := self._engine.get("folder"):
            time.sleep(self._engine.get("close_s", 0))
            (Path(folder) / "closed").touch()


def load(context: LoadContext) -> RecordingBackend:
    if words := context.worker.engine.get("writes"):
        os.write(2, f"{words}\n\n".encode())
    if status := context.worker.engine.get("exit"):
        os._exit(status)
    if text := context.worker.engine.get("load_raises"):
        raise OutOfMemoryError(text)
    if file := context.worker.engine.get("broken"):
        raise ForeignError(file, 7)
    if held := context.worker.engine.get("gpu_bytes"):
        sys.modules["torch.cuda"] = FakeTorchCuda(held)
    context.report(
        LoadProgress(stage="loading_to_vram", bytes_done=1, bytes_total=context.worker.engine.get("bytes_total", 2))
    )
    time.sleep(context.worker.engine.get("load_s", 0))
    return RecordingBackend(context)


SPEC = WorkerSpec(
    name="recording",
    request=InferenceRequest,
    outputs=(TokenOutput,),
    load=load,
    warm_up=InferenceRequest,
    needs_model=False,
)
