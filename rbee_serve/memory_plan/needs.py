"""What a worker needs of each of its GPUs, figure by figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """Bytes on one GPU. `source` names where the number comes from; it is `assumed` where it is an estimate, and not
    read from files or computed exactly from what they declare."""

    bytes: int
    source: str
    assumed: bool = False


NOTHING = Figure(0, "not needed")
"""What a worker does not need, such as a KV cache for a classifier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeeds:
    """The needs of one worker on each of its GPUs, without the CUDA context. A figure that is None is unknown."""

    weights: Figure | None
    """The weights, in the type in which they are loaded."""
    activations: Figure | None
    """The most that a forward pass holds beside them, CUDA graphs included."""
    kv_cache: Figure | None = NOTHING
    """The KV cache of one request of the longest length."""
    kv_tokens: int = 0
    """That length, in tokens."""
    kv_bytes_per_token: float = 0
    """Bytes of the KV cache for each of its tokens; 0 where it does not grow with the length."""
    length_option: str = "max_model_len"
    """The engine's option for the longest length, for the advice to lower it."""
    memory_fraction: float | None = None
    """The part of the GPU that the engine is set to use by an option of its own, in place of the worker's share."""

    def figures(self) -> Iterator[tuple[str, Figure | None]]:
        """The figures by their name in the table."""
        yield "weights", self.weights
        yield "KV cache", self.kv_cache
        yield "activations", self.activations

    @property
    def unknown(self) -> tuple[str, ...]:
        """The names of the unknown figures."""
        return tuple(name for name, figure in self.figures() if figure is None)

    @property
    def total_bytes(self) -> int:
        """The sum of the known figures."""
        return sum(figure.bytes for _, figure in self.figures() if figure is not None)

    @property
    def certain_bytes(self) -> int:
        """The sum of the figures that are not assumed."""
        return sum(figure.bytes for _, figure in self.figures() if figure is not None and not figure.assumed)
