"""Scaling: clients, payload size, slow readers, copies of the ingress, nodes.

The echo worker behind `rbee-serve serve`, against itself in another setting, or the same echo on uvicorn and Starlette
in one process. Every complete stream is checked: each word once and in order.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.checked_streams import SlowLoad, read_checked, read_slowly
from benchmarks.load import StreamLoad, requests
from benchmarks.method import (
    Comparison,
    Reading,
    Row,
    Turn,
    block_options,
    comparison_table,
    measures,
    run_blocks,
    save,
    variant_table,
)
from benchmarks.payloads import Payload, exchange
from benchmarks.processes import Stopwatch, one_process
from benchmarks.servers import Server, baseline, ours

OURS, STARLETTE = "rbee-serve", "uvicorn"
TWO_INGRESSES, TWO_NODES = "two ingresses", "two nodes"
SLOW = ", slow ones beside"

CLIENTS = (1, 4, 16, 64)
RAMP_S = 0.5
"""Seconds that streams run before they are counted."""
BUSY = 32
"""Clients of the parts with a fixed number."""
SIZES = {"1 KB": 1_000, "10 KB": 10_000, "100 KB": 100_000, "1 MB": 1_000_000, "10 MB": 10_000_000}
READERS = 8
"""Fast readers, and as many slow ones."""
SLOW_BYTES_PER_S = 20_000
FILL_S = 15.0
"""Seconds that slow readers start earlier. Their streams run at full speed until the buffers are full: one megabyte of
ours, and up to four of the kernel's."""
TAIL_S = 2.0
"""Seconds that they read longer, while the memory is measured."""
PROMPT = "the quick brown fox jumps over the lazy dog again"
WORDS, LONG_WORDS = 100, 1000
"""Words of a stream, and of one for fast readers beside slow ones."""
ENDLESS = 100_000
"""Repetitions in a slow reader's stream: more than it reads."""

Readings = Mapping[str, Reading]


class Bench:
    """The servers, each started on first use, and the reader processes."""

    def __init__(self, stack: ExitStack, seconds: float) -> None:
        self.seconds = seconds
        self.reader, self.slow_reader = (stack.enter_context(one_process()) for _ in range(2))
        for process in (self.reader, self.slow_reader):
            process.submit(time.time).result()  # start it before timing matters
        self._stack = stack
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._servers: dict[str, Server] = {}

    def server(self, variant: str) -> Server:
        """The server of a variant, stopped with SIGSTOP."""
        if variant not in self._servers:
            self._servers[variant] = self._start(variant)
        return self._servers[variant]

    def _start(self, variant: str) -> Server:
        probe = {"prompt": "hello", "stream": False}
        if variant == STARLETTE:
            return baseline(self._stack, self._folder, "starlette", probe)
        limits = {"prompt": 2 * max(SIZES.values())}
        worker = {"id": "echo-0", "type": "echo", "cpus": 1, "max_ongoing_requests": 200, "limits": limits}
        start = partial(ours, self._stack, self._folder, worker, probe)
        if variant == TWO_INGRESSES:
            return start(name="two-ingresses", args={"ingress_replicas": 2})
        if variant == TWO_NODES:
            return start(name="two-nodes", module=["benchmarks.baselines.two_nodes"])
        return start()


def main() -> None:
    """Measure and print."""
    options = _options()
    with ExitStack() as stack:
        bench = Bench(stack, options.seconds)
        rows = [row for part in options.parts for row in run_blocks(PARTS[part](bench), options.blocks)]
    print(f"\n{variant_table(rows)}\n\n{comparison_table(rows, comparisons(rows))}")
    if options.save:
        save(rows, options.save)


def comparisons(rows: Sequence[Row]) -> Iterator[Comparison]:
    """The comparisons that `rows` allow, without goals."""
    for measure in measures(rows):
        if "/s" in measure:
            yield Comparison(measure, OURS, STARLETTE)
            yield Comparison(measure, TWO_INGRESSES, OURS)
            yield Comparison(measure, TWO_NODES, OURS)
            for variant in (OURS, STARLETTE):
                yield Comparison(measure, variant + SLOW, variant)


def _clients(bench: Bench) -> dict[str, Turn]:
    return {variant: partial(_load_of_all, bench, variant, CLIENTS) for variant in (OURS, STARLETTE)}


def _ingresses(bench: Bench) -> dict[str, Turn]:
    return {variant: partial(_load_of_all, bench, variant, [BUSY], ", copies") for variant in (OURS, TWO_INGRESSES)}


def _nodes(bench: Bench) -> dict[str, Turn]:
    return {variant: partial(_load_of_all, bench, variant, [BUSY], ", nodes") for variant in (OURS, TWO_NODES)}


def _payloads(bench: Bench) -> dict[str, Turn]:
    return {variant: partial(_exchanges, bench, variant) for variant in (OURS, STARLETTE)}


def _slow(bench: Bench) -> dict[str, Turn]:
    turns: dict[str, Turn] = {}
    for variant in (OURS, STARLETTE):
        turns[variant] = partial(_fast_readers, bench, variant, slow=False)
        turns[variant + SLOW] = partial(_fast_readers, bench, variant, slow=True)
    return turns


PARTS: dict[str, Callable[[Bench], dict[str, Turn]]] = {
    "clients": _clients,
    "payloads": _payloads,
    "slow": _slow,
    "ingresses": _ingresses,
    "nodes": _nodes,
}


def _load_of_all(bench: Bench, variant: str, numbers: Sequence[int], part: str = "") -> Readings:
    """Requests, then streams, of each number of clients; `part` distinguishes measures of two parts."""
    readings: dict[str, Reading] = {}
    server = bench.server(variant)
    body = json.dumps({"prompt": "hello world", "stream": False}).encode()
    with server.awake():
        for clients in numbers:
            named = (f", {clients} clients" if clients > 1 else ", 1 client") + part
            watch = Stopwatch(server.tree)
            answered = requests(server.target, body, clients, bench.seconds)
            readings[f"requests/s{named}"] = Reading(answered.per_s, 1e6 * watch.cpu_s() / answered.count)
            readings[f"answer p50, ms{named}"] = Reading(answered.median_ms)
            readings[f"answer p99, ms{named}"] = Reading(answered.p99_ms)
            watch = Stopwatch(server.tree)
            load = StreamLoad(server.target, [_stream(WORDS)], clients, bench.seconds, ramp_s=RAMP_S, keep=True)
            seen = bench.reader.submit(read_checked, load, WORDS).result()
            readings[f"events/s{named}"] = Reading(seen.frames_per_s, 1e6 * watch.cpu_s() / seen.all_frames)
            readings |= _percentiles(f"first event {{}}, ms{named}", sorted(seen.first_s))
    return readings


def _exchanges(bench: Bench, variant: str) -> Readings:
    """Requests of growing size with small responses, then with responses of the same size, from one client; and the
    growth of the memory of all processes after them."""
    readings: dict[str, Reading] = {}
    server = bench.server(variant)
    with server.awake():
        before = _memory_mb(server)
        for back in (False, True):
            for name, size in SIZES.items():
                named = f", {name} in and out" if back else f", {name} in"
                watch = Stopwatch(server.tree)
                seen = bench.reader.submit(exchange, Payload(server.target, size, back, bench.seconds / 2)).result()
                readings[f"exchanges/s{named}"] = Reading(seen.per_s, 1e6 * watch.cpu_s() / len(seen.times_s))
                readings |= _percentiles(f"exchange {{}}, ms{named}", seen.times_s)
        readings["memory after payloads, MB more"] = Reading(_memory_mb(server) - before)
    return readings


def _fast_readers(bench: Bench, variant: str, slow: bool) -> Readings:
    """Fast readers, and the throughput and memory of slow ones beside them."""
    server = bench.server(variant)
    fast = StreamLoad(server.target, [_stream(LONG_WORDS)], READERS, bench.seconds, ramp_s=RAMP_S, keep=True)
    endless = json.dumps({"prompt": PROMPT, "repeat": ENDLESS}).encode()
    with server.awake():
        readings: dict[str, Reading] = {}
        before = _memory_mb(server)
        sipping = SlowLoad(server.target, endless, READERS, SLOW_BYTES_PER_S, FILL_S + RAMP_S + bench.seconds + TAIL_S)
        slowly = bench.slow_reader.submit(read_slowly, sipping) if slow else None
        if slowly:
            time.sleep(FILL_S - 1)
            watch = Stopwatch(server.tree)
            time.sleep(1)
            readings["slow readers alone, % of a core"] = Reading(100 * watch.cpu_s() / watch.wall_s())
        watch = Stopwatch(server.tree)
        seen = bench.reader.submit(read_checked, fast, LONG_WORDS).result()
        readings["events/s, fast readers"] = Reading(seen.frames_per_s, 1e6 * watch.cpu_s() / seen.all_frames)
        readings |= _percentiles("first event {}, ms, fast readers", sorted(seen.first_s))
        readings["memory, MB more"] = Reading(_memory_mb(server) - before)
        if slowly:
            got = slowly.result() / READERS / sipping.seconds
            readings["KB/s of each slow reader"] = Reading(got / 1000)
    return readings


def _stream(words: int) -> bytes:
    return json.dumps({"prompt": PROMPT, "repeat": words // len(PROMPT.split())}).encode()


def _percentiles(measure: str, times_s: Sequence[float]) -> dict[str, Reading]:
    """The median and the 99th percentile of sorted times, in milliseconds."""
    last = len(times_s) - 1
    return {measure.format(f"p{p}"): Reading(1e3 * times_s[last * p // 100]) for p in (50, 99)}


def _memory_mb(server: Server) -> float:
    return sum(server.tree.memory_bytes().values()) / 1e6


def _options() -> argparse.Namespace:
    parser = block_options(__doc__)
    parser.set_defaults(blocks=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one reading")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
