"""The end of a request's stream: one `metrics` event and one `end` event, from one clock."""

from __future__ import annotations

import time
from typing import Any

from rbee_serve.events import End, Metrics, StopReason
from rbee_serve.worker.backend import InferenceBackend


class RequestClock:
    """Measures one request from its acceptance to its end, in seconds of `time.monotonic`."""

    def __init__(self) -> None:
        self._started_at = time.monotonic()
        self._first_output_s: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the request was accepted; never 0, so a rate can be computed from it."""
        return max(time.monotonic() - self._started_at, 1e-9)

    def mark_output(self) -> None:
        """Record that an output is ready. Only the first call counts."""
        if self._first_output_s is None:
            self._first_output_s = self.seconds

    @property
    def first_output_ms(self) -> float:
        """Milliseconds until the first output, rounded to a tenth; until now if there was none."""
        return round((self._first_output_s or self.seconds) * 1000, 1)

    def rates(self, outputs: int) -> dict[str, float | int]:
        """Metrics that fit every worker type, for a request of so many outputs that ends now."""
        return {
            "outputs_per_sec": round(outputs / self.seconds, 3),
            "time_to_first_output_ms": self.first_output_ms,
        }

    def complete(
        self,
        backend: InferenceBackend[Any, Any],
        metrics: dict[str, float | int],
        *,
        tokens_out: int,
        seconds: float | None = None,
        stop_reason: StopReason = StopReason.COMPLETE,
        stop_sequence_matched: str | None = None,
        seed: int | None = None,
    ) -> tuple[Metrics, End]:
        """The last two events of a successful stream. `metrics` are the rates and counts of the worker type;
        `vram_bytes` is added here. `tokens_out` counts outputs in the unit of the type. `seconds` is the time that
        the rates were computed from; by default the time until now."""
        elapsed_s = self.seconds if seconds is None else seconds
        return (
            Metrics({**metrics, "vram_bytes": backend.memory_bytes()}),
            End(
                tokens_out=tokens_out,
                decode_time_ms=round(elapsed_s * 1000),
                stop_reason=stop_reason,
                stop_sequence_matched=stop_sequence_matched,
                seed=seed,
            ),
        )
