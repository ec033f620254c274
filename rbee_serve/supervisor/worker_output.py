"""What Ray's processes write, on our terminal: by default only the warnings of rbee-serve itself.

Everything is in Ray's log folder anyway. vLLM alone writes a hundred lines while it starts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_OURS = re.compile(r"\S+ \S+ (?:WARNING|ERROR|CRITICAL) rbee_serve[\w.]* \[(?P<id>\S*)\] (?P<text>.*)")
"""A line in the format of `rbee_serve.correlation.configure_logging`, at least a warning."""


def show_worker_output(show: Callable[[str], None], verbose: bool) -> None:
    """From now on give `show` the lines that are worth it, in place of Ray's own printing. Needs a started Ray."""
    import ray
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    def take(batch: Mapping[str, Any]) -> None:
        for line in worth_showing(batch, verbose):
            show(line)

    ray._private.worker._worker_logs_enabled = verbose  # what Ray says of its own, such as retries while it is stopped
    dispatcher.remove_handler("ray_print_logs")
    dispatcher.add_handler("rbee_serve", take)


def worth_showing(batch: Mapping[str, Any], verbose: bool) -> Iterator[str]:
    """The lines of one batch of Ray's log monitor, each with the name of its worker in front."""
    source = re.sub(r"^ServeReplica:[^:]*:", "", str(batch.get("actor_name") or batch.get("pid") or "ray"))
    if source == "autoscaler":  # a report of the resources every five seconds
        return
    for line in batch.get("lines", ()):
        if verbose:
            yield f"{source}: {line}"
        elif match := _OURS.fullmatch(line):
            where = "" if match["id"] == "-" else f" [{match['id']}]"
            yield f"{source}: {match['text']}{where}"
