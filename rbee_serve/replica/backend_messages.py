"""Messages between a replica and the process of its backend.

Both ends are processes of the same program, connected by a socket pair that nobody else can open. That is why requests,
events and exceptions are pickled inside the messages; between machines nothing is.
"""

from __future__ import annotations

import mmap
import pickle
from typing import Any

import msgspec

from rbee_serve.state import LoadProgress
from rbee_serve.worker.watchdog import CELLS

WINDOW = 32
"""Events that a stream may be ahead of its reader. The reader grants more after each half of them."""

DEVICE_LOST_STATUS = 71
"""Exit status of a process that cannot use its accelerator any more."""

WATCHDOG_BYTES = 8 * CELLS
"""Size of the shared memory of the watchdog."""


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A tagged MessagePack array."""


class Load(_Message, frozen=True, array_like=True, tag=True):
    """Load the model. `context` is the pickled pair of `WorkerConfig` and `Device`."""

    context: bytes


class Execute(_Message, frozen=True, array_like=True, tag=True):
    """Start a stream for a pickled request."""

    stream_id: int
    request: bytes
    correlation_id: str | None


class Grant(_Message, frozen=True, array_like=True, tag=True):
    """The reader has taken half a window of events."""

    stream_id: int


class Cancel(_Message, frozen=True, array_like=True, tag=True):
    """Cancel a stream."""

    stream_id: int


class GpuHeld(_Message, frozen=True, array_like=True, tag=True):
    """The load may use its GPUs: the replica holds their locks."""


class Loading(_Message, frozen=True, array_like=True, tag=True):
    """A pickled `LoadProgress`. Its values are checked by the replica, so they may be of any type."""

    progress: bytes


class Loaded(_Message, frozen=True, array_like=True, tag=True):
    """The model is loaded, or `error` is the pickled exception of the load."""

    error: bytes | None = None


class Memory(_Message, frozen=True, array_like=True, tag=True):
    """The bytes that torch holds on GPUs, whenever they have changed."""

    held: int


class WaitForGpu(_Message, frozen=True, array_like=True, tag=True):
    """The load has come to where it needs its GPUs. `GpuHeld` answers when it has them."""


class Item(_Message, frozen=True, array_like=True, tag=True):
    """A pickled event of a stream."""

    stream_id: int
    event: bytes


class Closed(_Message, frozen=True, array_like=True, tag=True):
    """A stream has ended, with a pickled exception if the backend raised one."""

    stream_id: int
    error: bytes | None = None


ToBackend = Load | GpuHeld | Execute | Grant | Cancel
FromBackend = Loading | WaitForGpu | Loaded | Memory | Item | Closed


def encode(value: Any) -> bytes:
    """A pickled object for the other process."""
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


def decode(data: bytes) -> Any:
    """An object from the other process."""
    return pickle.loads(data)  # noqa: S301  (from the process at the other end of the socket pair)


def encode_progress(progress: LoadProgress) -> bytes:
    """The pickled progress. A value that msgspec does not know becomes a dictionary, which no field allows: the
    replica's check then names the field."""
    return encode(LoadProgress(**msgspec.to_builtins(progress, enc_hook=lambda value: {})))


def watchdog_cells(descriptor: int) -> memoryview[float]:
    """The numbers of a `Watchdog` in the shared memory of an open file."""
    return memoryview(mmap.mmap(descriptor, WATCHDOG_BYTES)).cast("d")
