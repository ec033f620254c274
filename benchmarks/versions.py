"""P8 beside another version: the CPU time of a request and of an event, of this checkout and of another one, in turns.

    python -m benchmarks.versions OTHER_CHECKOUT --save benchmarks/raw/versions.csv

Both run the echo worker behind `rbee-serve serve` in this environment. The load and the readings are those of
`benchmarks.echo`; a ratio of CPU times says more than one of rates, as other programs of the machine do not count.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.echo import OURS, load_options, measure
from benchmarks.load import StreamReader
from benchmarks.method import (
    CONTROL,
    Comparison,
    Reading,
    Row,
    comparison_table,
    measures,
    run_blocks,
    save,
    variant_table,
)
from benchmarks.servers import Server, ours

OTHER = "the other version"
MEMORY = "memory after the load, MB"
MAX_CPU_RATIO = 1.03


def main() -> None:
    """Measure and print."""
    options = _options()
    probe = {"prompt": "hello", "stream": False}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reader = StreamReader()
        stack.callback(reader.close)
        worker = {"id": "echo-0", "type": "echo", "cpus": 0}
        servers = {
            OURS: ours(stack, folder, {**worker, "max_ongoing_requests": 200}, probe),
            OTHER: ours(stack, folder, {**worker, options.key: 200}, probe, name="other", checkout=options.checkout),
        }
        servers[f"{OURS}{CONTROL}"] = servers[OURS]
        turns = {name: partial(_turn, server, reader, options) for name, server in servers.items()}
        rows = run_blocks(turns, options.blocks)
    print(f"\n{variant_table(rows)}\n\n{comparison_table(cpu_rows(rows), comparisons(rows))}")
    if options.save:
        save(rows, options.save)


def _turn(server: Server, reader: StreamReader, options: argparse.Namespace) -> dict[str, Reading]:
    readings = measure(server, server.target, reader, options)
    return {**readings, MEMORY: Reading(sum(server.tree.memory_bytes().values()) / 1e6)}


def cpu_rows(rows: Sequence[Row]) -> list[Row]:
    """The same rows with the CPU time per unit as their value, and as it is where there is none."""
    return [row if row.cpu_us != row.cpu_us else replace(row, value=row.cpu_us) for row in rows]


def comparisons(rows: Sequence[Row]) -> Iterator[Comparison]:
    """This version against the other one, with the control: CPU time, what an idle server takes, and memory."""
    for name in measures(rows):
        if name.startswith(("requests/s", "events/s", "idle", MEMORY)):
            yield Comparison(name, f"{OURS}{CONTROL}", OURS, kind="ratio at most")
            yield Comparison(name, OURS, OTHER, MAX_CPU_RATIO, kind="ratio at most")


def _options() -> argparse.Namespace:
    parser = load_options(__doc__, seconds=4.0, idle=4.0)
    parser.add_argument("checkout", type=Path, help="the folder of the other version")
    parser.add_argument("--key", default="capacity", help="what the other version calls max_ongoing_requests")
    return parser.parse_args()


if __name__ == "__main__":
    main()
