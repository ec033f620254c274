"""How vLLM's engine and its worker process wait for each other on a CPU.

They exchange messages in shared memory, and whoever waits looks at it without a pause for as long as a second: nearly
half of the CPU time of a token of SmolLM2-135M, on a core that all other processes need. vLLM has no setting for that.
Here the pauses grow with what has been waited: a wait takes a tenth of a millisecond longer, or a sixtieth of itself,
and never more than half a millisecond.

After that second vLLM waits to be notified, and looks again after five seconds if it was not. An engine that waited so
from the start made 1.4 tokens a second of 170, for a reason that was not found: so here it looks sooner.
"""

from __future__ import annotations

import os
import time
from typing import Any

AT_ONCE_S = 50e-6
"""So long the other one is waited for without a pause: about what it takes to fall asleep and wake."""
SHORT_PAUSE_S = 100e-6
LONGEST_PAUSE_S = 500e-6
SPIN_S = 1.0
"""After this it waits to be notified."""
LOOK_MS = 50
"""And looks all the same, so often that it costs next to nothing."""


def let_waiters_sleep() -> None:
    """In this process, from the next queue on, where vLLM runs on a CPU. On GPUs there are cores to spare."""
    from vllm.distributed.device_communicators import shm_broadcast
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        shm_broadcast.SpinCondition = sleeping(shm_broadcast.SpinCondition)


def pause_s(waited_s: float) -> float:
    """Seconds to sleep before the next look, after so many of waiting; 0 for none."""
    return 0.0 if waited_s < AT_ONCE_S else min(waited_s / 8, max(SHORT_PAUSE_S, waited_s / 64), LONGEST_PAUSE_S)


def sleeping(spin: Any) -> Any:
    """vLLM's `SpinCondition`, which sleeps between its looks."""

    class SleepingCondition(spin):  # type: ignore[misc]
        _since: float | None = None

        def record_read(self) -> None:
            """A message has come."""
            super().record_read()
            self._since = None

        def wait(self, timeout_ms: int | None = None) -> None:
            """Return when it is time to look again."""
            now = time.monotonic()
            if self._since is None:
                self._since = now
            if now - self._since > SPIN_S:
                super().wait(LOOK_MS if timeout_ms is None else min(timeout_ms, LOOK_MS))
            elif pause := pause_s(now - self._since):
                time.sleep(pause)
            else:
                os.sched_yield()

    return SleepingCondition
