"""P9: the cost of open streams at a constant total rate of events.

The echo worker behind `rbee-serve serve` sends the same number of events per second over one stream or over hundreds.
The variants are numbers of streams of one server; the variant without streams is the idle server.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.method import (
    NO_GOAL,
    Comparison,
    Goal,
    Reading,
    Row,
    block_options,
    comparison_table,
    run_blocks,
    save,
    table,
    variant_table,
)
from benchmarks.paced_streams import SETTLE_S, Pace, read_paced
from benchmarks.processes import Stopwatch, one_process
from benchmarks.servers import Server, ours

CPU = "CPU, % of a core"
LAG = "lag p99, ms"
FAULTS = "faulty streams"
CPU_GOAL: Goal = (1.25, None)
LAG_GOAL_MS: Goal = (50.0, None)
IDLE = "idle"


def main() -> None:
    """Measure and print."""
    options = _options()
    spent: dict[str, Counter[str]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        client = stack.enter_context(one_process())
        client.submit(time.time).result()  # start it before timing matters
        worker = {"id": "echo-0", "type": "echo", "cpus": 0, "max_ongoing_requests": max(options.streams)}
        server = ours(stack, folder, worker, {"prompt": "hello", "stream": False})
        numbers = {IDLE: 0} | {_side(number): number for number in options.streams}
        numbers[f"{_side(options.streams[0])} again"] = options.streams[0]
        turns = {
            variant: partial(_turn, server, client, number, options, spent.setdefault(variant, Counter()))
            for variant, number in numbers.items()
        }
        rows = run_blocks(turns, options.blocks)
    print(f"\n{variant_table(rows)}\n\n{comparison_table(rows, comparisons(rows))}")
    if options.processes:
        print(f"\n{_process_table(spent, 2 * options.blocks * options.seconds)}")
    if options.save:
        save(rows, options.save)
    if faults := sum(row.value for row in rows if row.measure == FAULTS):
        sys.exit(f"{faults:.0f} streams were not as they should be")


def _side(streams: int) -> str:
    return "1 stream" if streams == 1 else f"{streams} streams"


def comparisons(rows: Sequence[Row]) -> Iterator[Comparison]:
    """The comparisons that `rows` allow: CPU of the most streams against the fewest, the other goals for each."""
    base, *others = [
        variant for variant in dict.fromkeys(row.variant for row in rows) if variant.endswith(("stream", "streams"))
    ]
    yield Comparison(CPU, f"{base} again", base)
    for variant in others:
        yield Comparison(CPU, variant, base, *(CPU_GOAL if variant == others[-1] else NO_GOAL), "ratio at most")
    for variant in (base, *others):
        yield Comparison(LAG, variant, "", *LAG_GOAL_MS, "value at most")
        yield Comparison(FAULTS, variant, "", 0.0, kind="value at most")


def _turn(
    server: Server, client: ProcessPoolExecutor, streams: int, options: argparse.Namespace, spent: Counter[str]
) -> dict[str, Reading]:
    with server.awake():
        begin = time.time()
        pace = Pace(server.target, streams, options.rate, options.seconds)
        reading = client.submit(read_paced, pace, begin) if streams else None
        time.sleep(max(0.0, begin + SETTLE_S - time.time()))
        watch = Stopwatch(server.tree)
        time.sleep(max(0.0, begin + SETTLE_S + options.seconds - time.time()))
        by_name, wall_s, others = watch.cpu_by_name(), watch.wall_s(), watch.others_percent()
        spent.update(by_name)
        cpu_s = float(sum(by_name.values()))
        readings = {CPU: Reading(100 * cpu_s / wall_s), "other programs, % of a core": Reading(others)}
        if reading is None:
            return readings
        seen = reading.result()
    for fault in seen.faults[:3]:
        print(fault, file=sys.stderr)
    late = sorted(seen.lags_s) or [float("inf")]
    whole_s = pace.words / pace.rate + streams / options.rate
    return {
        CPU: Reading(100 * cpu_s / wall_s, 1e6 * cpu_s / (options.rate * wall_s)),
        "events/s": Reading(len(seen.lags_s) / options.seconds),
        "lag p50, ms": Reading(1e3 * late[len(late) // 2]),
        LAG: Reading(1e3 * late[int(0.99 * len(late))]),
        "longest lag, ms": Reading(1e3 * late[-1]),
        FAULTS: Reading(len(seen.faults)),
        "client, % of a core": Reading(100 * seen.client_cpu_s / whole_s),
        "other programs, % of a core": Reading(others),
    }


def _process_table(spent: dict[str, Counter[str]], seconds: float) -> str:
    lines = [
        [variant, name, f"{100 * cpu_s / seconds:.2f}"]
        for variant, by_name in spent.items()
        for name, cpu_s in by_name.most_common(6)
    ]
    return table(["variant", "process", CPU], lines)


def _options() -> argparse.Namespace:
    parser = block_options(__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 64, 500], help="the first is the reference")
    parser.add_argument("--rate", type=float, default=500.0, help="events per second over all streams")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one reading")
    parser.add_argument("--processes", action="store_true", help="show CPU time by process")
    return parser.parse_args()


if __name__ == "__main__":
    main()
