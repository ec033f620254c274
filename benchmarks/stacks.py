"""Sampled stacks, grouped by step of a request.

A sample belongs to the step of its innermost frame in a file listed here: the standard library counts for its caller,
unless it is a step of its own, as the event loop is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

OTHER = "other"

STEPS: dict[str, tuple[str, ...]] = {
    "logging": ("logging/", "ray/serve/_private/logging_utils.py"),
    "HTTP: parse and write": ("uvicorn/", "httptools/", "h11/"),
    "Starlette": ("starlette/",),
    "correlation, token": (
        "rbee_serve/correlation.py",
        "rbee_serve/ingress/correlation.py",
        "rbee_serve/ingress/auth.py",
    ),
    "validation": (
        "pydantic/",
        "rbee_serve/validation/parse.py",
        "rbee_serve/validation/limits.py",
        "rbee_serve/validation/violations.py",
        "rbee_serve/request.py",
    ),
    "transport": (
        "rbee_serve/transport/",
        "rbee_serve/ingress/channel.py",
        "rbee_serve/transport/request_client.py",
        "rbee_serve/transport/response_stream.py",
        "rbee_serve/transport/request_server.py",
    ),
    "state of workers": (
        "rbee_serve/state.py",
        "rbee_serve/replica/reporter.py",
        "rbee_serve/transport/state_client.py",
    ),
    "worker type": ("deployments/", "rbee_serve/worker/watchdog.py", "rbee_serve/worker/memory.py"),
    "ingress: from body to response": ("rbee_serve/ingress/",),
    "encoding": (
        "rbee_serve/events.py",
        "rbee_serve/outputs.py",
        "rbee_serve/result.py",
        "rbee_serve/sse.py",
        "msgspec/",
    ),
    "order, admission, deadline": (
        "rbee_serve/grammar.py",
        "rbee_serve/replica/",
    ),
    "Ray": ("ray/", "grpc/"),
    "event loop and tasks": ("asyncio/", "selectors.py", "threading.py"),
}
"""Prefixes of file names; the first match counts. uvloop has no frames: its time appears in the first frame of its
thread."""

_LINE = re.compile(r"(?:thread \((?P<thread>\d+)\): [^;]*;)?(?P<frames>.*) (?P<count>\d+)")
_FILE = re.compile(r"\((?P<file>[^()]+):\d+\)$")


@dataclass(frozen=True, slots=True)
class Stack:
    """Samples of one stack, its outermost file first. `thread` is the kernel's thread id, 0 if unknown."""

    thread: int
    files: tuple[str, ...]
    count: int


def parse_stacks(lines: Iterable[str]) -> list[Stack]:
    """Parse the output of `py-spy record --format raw`, with or without `--threads`. Other lines are skipped."""
    stacks = []
    for line in lines:
        if match := _LINE.fullmatch(line.strip()):
            found = (_FILE.search(frame) for frame in match["frames"].split(";"))
            files = tuple(file["file"] for file in found if file)
            stacks.append(Stack(int(match["thread"] or 0), files, int(match["count"])))
    return stacks


def step_of(files: Iterable[str]) -> str:
    """The step of a stack, its outermost file first."""
    for file in reversed(tuple(files)):
        for step, beginnings in STEPS.items():
            if file.startswith(beginnings):
                return step
    return OTHER


def by_step(stacks: Iterable[Stack]) -> Counter[str]:
    """Samples by step."""
    samples: Counter[str] = Counter()
    for stack in stacks:
        samples[step_of(stack.files)] += stack.count
    return samples
