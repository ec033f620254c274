"""A worker type that records its progress and its close in files of the folder `engine.folder`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from itertools import count
from pathlib import Path
from typing import Any

from rbee_serve.events import Event, Progress
from rbee_serve.outputs import TokenOutput
from rbee_serve.request import InferenceRequest
from rbee_serve.state import LoadProgress
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.spec import LoadContext, WorkerSpec


class ForeignError(Exception):
    """An exception that cannot be unpickled, as some libraries have them."""

    def __init__(self, file: str, line: int) -> None:
        super().__init__(f"{file}:{line}")


class RecordingBackend(InferenceBackend[InferenceRequest, TokenOutput]):
    def __init__(self, context: LoadContext) -> None:
        self._engine: dict[str, Any] = context.worker.engine
        self._steps = context.steps

    async def execute(self, request: InferenceRequest) -> AsyncGenerator[Event[TokenOutput], None]:
        folder = Path(self._engine["folder"])
        try:
            for step in count(1):
                with self._steps.working():
                    await asyncio.sleep(self._engine.get("wait_s", 0))
                    self._steps.step()
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
    if status := context.worker.engine.get("exit"):
        os._exit(status)
    if file := context.worker.engine.get("broken"):
        raise ForeignError(file, 7)
    context.report(LoadProgress(stage="loading_to_vram", bytes_done=1, bytes_total=2))
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
