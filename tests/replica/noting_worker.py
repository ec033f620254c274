"""A worker type that tells, in files of the folder `engine.notes`, how far it is and that it was closed."""

from __future__ import annotations

import asyncio
import os
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
    """As some libraries have them: it cannot be made again from its message."""

    def __init__(self, file: str, line: int) -> None:
        super().__init__(f"{file}:{line}")


class NotingBackend(InferenceBackend[InferenceRequest, TokenOutput]):
    def __init__(self, context: LoadContext) -> None:
        self._engine: dict[str, Any] = context.worker.engine
        self._steps = context.watchdog

    async def execute(self, request: InferenceRequest) -> AsyncGenerator[Event[TokenOutput], None]:
        folder = Path(self._engine["notes"])
        try:
            for number in count(1):
                with self._steps.working():
                    await asyncio.sleep(self._engine.get("wait_s", 0))
                    self._steps.step()
                (folder / "made").write_text(str(number))
                yield Progress(step=number, total=1_000_000)
        finally:
            (folder / "closed").touch()

    def memory_bytes(self) -> int:
        return 0


def load(context: LoadContext) -> NotingBackend:
    if status := context.worker.engine.get("exit"):
        os._exit(status)
    if file := context.worker.engine.get("broken"):
        raise ForeignError(file, 7)
    context.report(LoadProgress(stage="loading_to_vram", bytes_done=1, bytes_total=2))
    return NotingBackend(context)


SPEC = WorkerSpec(
    name="noting",
    request=InferenceRequest,
    outputs=(TokenOutput,),
    load=load,
    warm_up=InferenceRequest,
    needs_model=False,
)
