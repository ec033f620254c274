"""A worker type that writes its progress, and that it was closed, to files in the folder `engine.notes`."""

from __future__ import annotations

import asyncio
import os
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


class ForeignError(Exception):
    """An error as some libraries have them: it cannot be reconstructed from its message."""

    def __init__(self, file: str, line: int) -> None:
        super().__init__(f"{file}:{line}")


class NotingBackend(InferenceBackend[InferenceRequest, TokenOutput]):
    def __init__(self, context: LoadContext) -> None:
        self._engine: dict[str, Any] = context.worker.engine
        self._watchdog = context.watchdog

    async def execute(self, request: InferenceRequest) -> AsyncGenerator[Event[TokenOutput], None]:
        folder = Path(self._engine["notes"])
        try:
            for step in count(1):
                with self._watchdog.working():
                    await asyncio.sleep(self._engine.get("wait_s", 0))
                    self._watchdog.step()
                (folder / "made").write_text(str(step))
                yield Progress(step=step, total=1_000_000)
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
