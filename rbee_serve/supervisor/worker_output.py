"""What Ray's processes write, on our terminal: by default only the warnings of rbee-serve itself.

Everything is in Ray's log folder anyway. vLLM alone writes a hundred lines while it starts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rbee_serve.supervisor.log_folder import LogReader

_OURS = re.compile(r"\S+ \S+ (?:WARNING|ERROR|CRITICAL) rbee_serve[\w.]* \[(?P<id>\S*)\] (?P<text>.*)")
"""A line in the format of `rbee_serve.correlation.configure_logging`, at least a warning."""


def show_worker_output(show: Callable[[str], None], verbose: bool, logs: Path) -> LogReader:
    """From now on give `show` the lines that are worth it: of this machine from its folder `logs`, until the result is
    closed; of machines that have joined by Ray, in place of its own printing. Needs a started Ray."""
    import ray
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    def take(source: str, lines: Sequence[str]) -> None:
        for line in worth_showing(source, lines, verbose):
            show(line)

    def take_batch(batch: Mapping[str, Any]) -> None:
        """Of the log monitor that Ray has on every other machine."""
        take(str(batch.get("actor_name") or batch.get("pid") or "ray"), batch.get("lines", ()))

    ray._private.worker._worker_logs_enabled = verbose  # what Ray says of its own, such as retries while it is stopped
    dispatcher.remove_handler("ray_print_logs")
    dispatcher.add_handler("rbee_serve", take_batch)
    return LogReader(logs, take)


def worth_showing(source: str, lines: Sequence[str], verbose: bool) -> Iterator[str]:
    """Of what an actor or process has written, the lines for a person, each with the name of its worker in front."""
    worker = re.sub(r"^ServeReplica:[^:]*:", "", source)
    for line in lines:
        if verbose:
            yield f"{worker}: {line}"
        elif match := _OURS.fullmatch(line):
            where = "" if match["id"] == "-" else f" [{match['id']}]"
            yield f"{worker}: {match['text']}{where}"
