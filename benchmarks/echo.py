"""P8: the cost of the serving layer without a model.

The echo worker behind `rbee-serve serve`, and the same echo as a user of each library would write it: on Ray Serve, on
uvicorn and Starlette in one process, and on LitServe if an environment with it is named. A request returns one JSON
document, a stream is read frame by frame."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.load import StreamLoad, StreamReader, Target, requests
from benchmarks.method import (
    NO_GOAL,
    Comparison,
    Goal,
    Reading,
    Row,
    block_options,
    comparison_table,
    measures,
    run_blocks,
    save,
    table,
    variant_table,
)
from benchmarks.processes import Stopwatch
from benchmarks.servers import Server, baseline, ours

CLIENTS = 32
PROMPT = "the quick brown fox jumps over the lazy dog again"
WORDS = len(PROMPT.split())
ANSWERED = json.dumps({"prompt": "hello world", "stream": False}).encode()
"""A request for one JSON document."""
OURS, RAY_SERVE, STARLETTE, LITSERVE = "rbee-serve", "plain Ray Serve", "uvicorn", "LitServe"
RAY_SERVE_GOALS: Mapping[str, Goal] = {"requests/s": (3.0, 4.5), "events/s": (10.0, 25.0)}
"""Against plain Ray Serve, with `CLIENTS`: must and stretch."""
STARLETTE_GOALS: Mapping[str, Goal] = {"events/s": (0.8, 1.0)}
HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_HAPROXY_NBTHREAD": "1"}


def main() -> None:
    """Measure and print."""
    options = _options()
    settings = dict(setting.split("=", 1) for setting in options.set) | (HAPROXY if options.haproxy else {})
    probe = {"prompt": "hello", "stream": False}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reader = StreamReader()
        stack.callback(reader.close)
        worker = {"id": "echo-0", "type": "echo", "cpus": 0, "max_ongoing_requests": 200}
        servers = {OURS: ours(stack, folder, worker, probe, settings)}
        servers[f"{OURS} again"] = servers[OURS]
        if RAY_SERVE in options.against:
            servers[RAY_SERVE] = baseline(stack, folder, "ray_serve", probe)
        if STARLETTE in options.against:
            servers[STARLETTE] = baseline(stack, folder, "starlette", probe)
        if options.litserve:
            servers[LITSERVE] = baseline(stack, folder, "litserve", probe, environment=options.litserve)
        answers = {name: server.target for name, server in servers.items()}
        if options.litserve:
            answers[LITSERVE] = replace(answers[LITSERVE], path="/v1/answer")  # an API streams or does not
        turns = {name: partial(measure, server, answers[name], reader, options) for name, server in servers.items()}
        rows = run_blocks(turns, options.blocks)
        print(f"\n{variant_table(rows)}\n\n{comparison_table(rows, comparisons(rows))}")
        if options.save:
            save(rows, options.save)
        if options.processes:
            _print_processes(servers[OURS], reader, options)


def comparisons(rows: Sequence[Row]) -> Iterator[Comparison]:
    """The comparisons that `rows` allow; goals apply to `CLIENTS` clients."""
    for name in measures(rows):
        kind = name.partition(",")[0]
        if kind not in RAY_SERVE_GOALS:
            continue
        judged = name.endswith(f", {CLIENTS} clients")
        yield Comparison(name, f"{OURS} again", OURS)
        yield Comparison(name, OURS, RAY_SERVE, *(RAY_SERVE_GOALS[kind] if judged else NO_GOAL))
        yield Comparison(name, OURS, STARLETTE, *(STARLETTE_GOALS.get(kind, NO_GOAL) if judged else NO_GOAL))
        yield Comparison(name, OURS, LITSERVE)


def measure(server: Server, answers: Target, reader: StreamReader, options: argparse.Namespace) -> dict[str, Reading]:
    """One turn of a server: idle, requests to `answers`, and streams."""
    readings = {}
    with server.awake():
        if options.idle:
            watch = Stopwatch(server.tree)
            time.sleep(options.idle)
            readings["idle, % of a core"] = Reading(100 * watch.cpu_s() / watch.wall_s())
            readings["other programs, % of a core"] = Reading(watch.others_percent())
        for clients in options.clients:
            readings |= _loaded(server, answers, reader, clients, options)
    return readings


def _loaded(
    server: Server, answers: Target, reader: StreamReader, clients: int, options: argparse.Namespace
) -> dict[str, Reading]:
    readings = {}
    watch = Stopwatch(server.tree)
    answered = requests(answers, ANSWERED, clients, options.seconds)
    readings[f"requests/s, {clients} clients"] = Reading(answered.per_s, 1e6 * watch.cpu_s() / answered.count)
    readings[f"one request, ms, {clients} clients"] = Reading(answered.median_ms)
    for words in options.words:
        watch = Stopwatch(server.tree)
        seen = reader.read(_streams(server, words, clients, options.seconds))
        load = f"{words} words, {clients} clients"
        readings[f"events/s, {load}"] = Reading(seen.frames_per_s, 1e6 * watch.cpu_s() / seen.all_frames)
        if seen.first_s:  # with many clients a slow variant sends nothing within a short reading
            readings[f"first byte, ms, {load}"] = Reading(1e3 * statistics.median(seen.first_s))
    return readings


def _streams(server: Server, words: int, clients: int, seconds: float) -> StreamLoad:
    body = json.dumps({"prompt": PROMPT, "repeat": words // WORDS}).encode()
    return StreamLoad(server.target, [body], clients, seconds, ramp_s=0.5)


def _print_processes(server: Server, reader: StreamReader, options: argparse.Namespace) -> None:
    """Our CPU time by process."""
    lines = []
    with server.awake():
        watch = Stopwatch(server.tree)
        count = requests(server.target, ANSWERED, CLIENTS, options.seconds).count
        lines += [["request", name, f"{1e6 * s / count:.1f}"] for name, s in watch.cpu_by_name().most_common(6)]
        for words in options.words:
            watch = Stopwatch(server.tree)
            count = reader.read(_streams(server, words, CLIENTS, options.seconds)).all_frames
            unit = f"event of {words} words"
            lines += [[unit, name, f"{1e6 * s / count:.1f}"] for name, s in watch.cpu_by_name().most_common(6)]
    print(f"\n{table(['unit', 'process', 'CPU µs'], lines)}")


def load_options(
    text: str | None, *, seconds: float, idle: float, words: Sequence[int] = (100,)
) -> argparse.ArgumentParser:
    """A parser with the options that `measure` reads, and their defaults."""
    parser = block_options(text)
    parser.add_argument("--seconds", type=float, default=seconds, help="length of one reading")
    parser.add_argument("--idle", type=float, default=idle, help="seconds of the measurement of idle CPU; 0 skips it")
    parser.add_argument("--clients", type=int, nargs="+", default=[CLIENTS])
    parser.add_argument("--words", type=int, nargs="+", default=list(words), help="words in a stream")
    return parser


def _options() -> argparse.Namespace:
    parser = load_options(__doc__, seconds=3.0, idle=1.0, words=(100, 1000))
    parser.add_argument("--against", nargs="*", choices=[RAY_SERVE, STARLETTE], default=[RAY_SERVE, STARLETTE])
    parser.add_argument("--litserve", type=Path, help="also measure LitServe; a virtual environment with it")
    parser.add_argument("--haproxy", action="store_true", help="HAProxy in front of ours")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="environment variables for ours")
    parser.add_argument("--processes", action="store_true", help="show our CPU time by process")
    return parser.parse_args()


if __name__ == "__main__":
    main()
