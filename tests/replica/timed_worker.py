"""A worker type that writes when its load began and ended on the GPU, into the folder `engine.folder`.

`download_s` and `load_s` are its duration before and after `wait_for_gpu`; `vram_errors` is how many of its loads fail
for lack of memory; `exit` ends the process during the load.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rbee_serve.worker import (
    End,
    Event,
    InferenceBackend,
    InferenceRequest,
    InsufficientVram,
    LoadContext,
    StopReason,
    TokenOutput,
    WorkerSpec,
)


class Load(NamedTuple):
    """One load: seconds of the clock that all processes share."""

    worker_id: str
    gpus: tuple[str, ...]
    began_at: float
    ended_at: float

    def overlaps(self, other: Load) -> bool:
        """Whether both were under way at one time."""
        return self.began_at < other.ended_at and other.began_at < self.ended_at


def loads_in(folder: Path) -> list[Load]:
    """The loads that have ended, in the order of their beginnings."""
    lines = [path.read_text().split() for path in folder.glob("load-*")]
    loads = [Load(words[0], tuple(words[3:]), float(words[1]), float(words[2])) for words in lines]
    return sorted(loads, key=lambda load: load.began_at)


class TimedBackend(InferenceBackend[InferenceRequest, TokenOutput]):
    """Its load ends with its first request, which is the warm-up."""

    def __init__(self, context: LoadContext, began_at: float) -> None:
        self._context, self._began_at = context, began_at

    async def execute(self, request: InferenceRequest) -> AsyncGenerator[Event[TokenOutput], None]:
        write(self._context, self._began_at)
        yield End(tokens_out=0, decode_time_ms=0, stop_reason=StopReason.COMPLETE)

    def memory_bytes(self) -> int:
        return 0


def write(context: LoadContext, began_at: float) -> None:
    """Write the load that ends now."""
    worker, folder = context.worker, Path(context.worker.engine["folder"])
    text = f"{worker.id} {began_at} {time.monotonic()} {' '.join(context.device.ids)}"
    made = folder / f"writing-{worker.id}"
    made.write_text(text)
    made.rename(folder / f"load-{worker.id}-{time.monotonic_ns()}")  # another load may be reading the folder


def load(context: LoadContext) -> TimedBackend:
    time.sleep(context.worker.engine.get("download_s", 0))
    context.wait_for_gpu()
    return load_without_waiting(context)


def load_without_waiting(context: LoadContext) -> TimedBackend:
    engine: dict[str, Any] = context.worker.engine
    folder = Path(engine["folder"])
    began_at = time.monotonic()
    (folder / f"began-{context.worker.id}").write_text(str(os.getpid()))
    time.sleep(engine.get("load_s", 0.2))
    if engine.get("exit"):
        os._exit(7)
    attempts = sum(load.worker_id == context.worker.id for load in loads_in(folder))
    if attempts < engine.get("vram_errors", 0):
        write(context, began_at)
        raise InsufficientVram("the model needs 8.0 GB, but 7.0 GB are free")
    return TimedBackend(context, began_at)


SPEC = WorkerSpec(
    name="timed",
    request=InferenceRequest,
    outputs=(TokenOutput,),
    load=load,
    warm_up=InferenceRequest,
    needs_model=False,
    waits_for_gpu=True,
)
UNAWARE_SPEC = replace(SPEC, waits_for_gpu=False, load=load_without_waiting)
"""A type whose `load` does not wait for the GPU."""
OWN_PROCESS_SPEC = replace(SPEC, own_process=True)
UNAWARE_OWN_PROCESS_SPEC = replace(UNAWARE_SPEC, own_process=True)
