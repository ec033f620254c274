"""P8: what the serving layer costs when there is no model.

The echo worker behind `rbee-serve serve`, the same echo as a plain user of Ray Serve would write it, and the same on
uvicorn and Starlette in one process. Requests are answered with one JSON document, streams are read frame by frame.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.load import StreamLoad, StreamReader, requests
from benchmarks.method import (
    Comparison,
    Reading,
    Row,
    block_options,
    comparison_table,
    run_blocks,
    save,
    side_table,
    table,
)
from benchmarks.processes import Stopwatch
from benchmarks.servers import Server, ours, peer

CLIENTS = 32
PROMPT = "the quick brown fox jumps over the lazy dog again"
WORDS = len(PROMPT.split())
OURS, RAY_SERVE, STARLETTE = "rbee-serve", "plain Ray Serve", "uvicorn"
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
        worker = {"id": "echo-0", "type": "echo", "cpus": 0, "capacity": 200}
        servers = {OURS: ours(stack, folder, worker, probe, settings)}
        servers[f"{OURS} again"] = servers[OURS]
        if RAY_SERVE in options.against:
            servers[RAY_SERVE] = peer(stack, folder, "ray_serve", probe)
        if STARLETTE in options.against:
            servers[STARLETTE] = peer(stack, folder, "starlette", probe)
        turns = {name: partial(_turn, server, reader, options) for name, server in servers.items()}
        rows = run_blocks(turns, options.blocks)
        _print(rows, options)
        if options.processes:
            _print_processes(servers[OURS], reader, options)


def _turn(server: Server, reader: StreamReader, options: argparse.Namespace) -> dict[str, Reading]:
    readings = {}
    body = json.dumps({"prompt": "hello world", "stream": False}).encode()
    with server.awake():
        watch = Stopwatch(server.tree)
        time.sleep(options.idle)
        readings["idle, % of a core"] = Reading(100 * watch.cpu_s() / watch.wall_s())
        readings["other programs, % of a core"] = Reading(watch.others_percent())
        watch = Stopwatch(server.tree)
        answered = requests(server.target, body, CLIENTS, options.seconds)
        readings["requests/s"] = Reading(answered.per_s, 1e6 * watch.cpu_s() / answered.count)
        readings["one request, ms"] = Reading(answered.median_ms)
        for words in options.words:
            watch = Stopwatch(server.tree)
            seen = reader.read(_streams(server, words, options.seconds))
            readings[f"events/s, {words} words"] = Reading(seen.frames_per_s, 1e6 * watch.cpu_s() / seen.all_frames)
            firsts = sorted(seen.first_s)
            readings[f"first byte, ms, {words} words"] = Reading(1e3 * firsts[len(firsts) // 2])
    return readings


def _streams(server: Server, words: int, seconds: float) -> StreamLoad:
    body = json.dumps({"prompt": PROMPT, "repeat": words // WORDS}).encode()
    return StreamLoad(server.target, [body], CLIENTS, seconds, ramp_s=0.5)


def _print(rows: list[Row], options: argparse.Namespace) -> None:
    comparisons = []
    for measure in ("requests/s", *(f"events/s, {words} words" for words in options.words)):
        comparisons.append(Comparison(measure, f"{OURS} again", OURS))
        if RAY_SERVE in options.against:
            comparisons.append(Comparison(measure, OURS, RAY_SERVE, 3.0 if measure == "requests/s" else 10.0))
        if STARLETTE in options.against:
            comparisons.append(Comparison(measure, OURS, STARLETTE, None if measure == "requests/s" else 0.8))
    print(f"\n{side_table(rows)}\n\n{comparison_table(rows, comparisons)}")
    if options.save:
        save(rows, options.save)


def _print_processes(server: Server, reader: StreamReader, options: argparse.Namespace) -> None:
    """Where our CPU time goes, by process."""
    lines = []
    body = json.dumps({"prompt": "hello world", "stream": False}).encode()
    with server.awake():
        watch = Stopwatch(server.tree)
        count = requests(server.target, body, CLIENTS, options.seconds).count
        lines += [["request", name, f"{1e6 * s / count:.1f}"] for name, s in watch.cpu_by_name().most_common(6)]
        for words in options.words:
            watch = Stopwatch(server.tree)
            count = reader.read(_streams(server, words, options.seconds)).all_frames
            unit = f"event of {words} words"
            lines += [[unit, name, f"{1e6 * s / count:.1f}"] for name, s in watch.cpu_by_name().most_common(6)]
    print(f"\n{table(['unit', 'process', 'CPU µs'], lines)}")


def _options() -> argparse.Namespace:
    parser = block_options(__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one reading")
    parser.add_argument("--idle", type=float, default=1.0, help="seconds for which CPU without load is measured")
    parser.add_argument("--words", type=int, nargs="+", default=[100, 1000], help="words in a stream")
    parser.add_argument("--against", nargs="*", choices=[RAY_SERVE, STARLETTE], default=[RAY_SERVE, STARLETTE])
    parser.add_argument("--haproxy", action="store_true", help="HAProxy in front of ours")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="environment variables for ours")
    parser.add_argument("--processes", action="store_true", help="show where our CPU time goes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
