"""The output of Ray's processes on the terminal: by default only the warnings of rbee-serve itself.

Ray's log folder has all of it. vLLM alone writes a hundred lines while it starts.
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
    """Call `show` with the lines for a person: of this machine from its folder `logs`, until the result is closed; of
    other machines in the cluster through Ray, whose own printing is switched off. Ray must have started."""
    import ray
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    def on_lines(source: str, lines: Sequence[str]) -> None:
        for line in worth_showing(source, lines, verbose):
            show(line)

    def on_batch(batch: Mapping[str, Any]) -> None:
        """Lines of Ray's log monitor on another machine."""
        on_lines(str(batch.get("actor_name") or batch.get("pid") or "ray"), batch.get("lines", ()))

    ray._private.worker._worker_logs_enabled = verbose  # Ray's own messages, such as retries while it is stopped
    dispatcher.remove_handler("ray_print_logs")
    dispatcher.add_handler("rbee_serve", on_batch)
    return LogReader(logs, on_lines)


def worth_showing(source: str, lines: Sequence[str], verbose: bool) -> Iterator[str]:
    """The lines of an actor or process that a person should see, each prefixed with the name of its worker."""
    worker = re.sub(r"^ServeReplica:[^:]*:", "", source)
    for line in lines:
        if verbose:
            yield f"{worker}: {line}"
        elif match := _OURS.fullmatch(line):
            where = "" if match["id"] == "-" else f" [{match['id']}]"
            yield f"{worker}: {match['text']}{where}"
