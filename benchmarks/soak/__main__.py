"""A soak: all workers of a configuration and some echo workers under mixed load, while clients leave, processes are
killed and the orchestrator misbehaves.

    python -m benchmarks.soak --minutes 30 --output benchmarks/raw/soak.csv

The exit status is 0 if every response was allowed, nothing grew, and nothing is left after the stop.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from benchmarks.servers import ROOT
from benchmarks.soak import memory
from benchmarks.soak.faults import PAUSE_S, Faults
from benchmarks.soak.hive import HEARTBEAT_S, Hive
from benchmarks.soak.load import USERS, Record, check_all, use
from benchmarks.soak.report import Result
from benchmarks.soak.server import Server

CALM_MINUTES = 1.0
"""Before the first window, so that the replacements of killed processes have loaded and warmed up."""
QUIET_S = 10.0
"""How long counters may take to return to zero after the last request."""
LAST_FAULT_S = 60.0
"""Before the end of a full run no fault is injected: a language model takes as long to load."""


def main() -> int:
    """Run the soak and print its tables."""
    options = _options()
    hive = Hive()
    server = Server(options.config, hive.url, no_llm=options.no_llm)
    try:
        result = asyncio.run(_soak(server, hive, options))
    finally:
        server.kill()
    print(f"\n{result}\n\nlogs: {server.temp}, {server.log}", flush=True)
    if not result.failures:
        shutil.rmtree(server.temp, ignore_errors=True)
    return 1 if result.failures else 0


async def _soak(server: Server, hive: Hive, options: argparse.Namespace) -> Result:
    rng = random.Random(options.seed)
    record, faults, readings, temp_files = Record(), Faults(server, rng), [], []
    windows = memory.Windows.of(options.minutes)
    stop = asyncio.Event()
    async with hive.running():
        print(f"started in {await asyncio.to_thread(server.start):.0f} s: {server.log}", flush=True)
        began = time.monotonic()

        async def measure() -> None:
            while not stop.is_set():
                readings.extend(await asyncio.to_thread(memory.read, server.pid, began))
                temp_files.append(server.temp_files())
                await asyncio.sleep(memory.PERIOD_S)

        async def injure() -> None:
            """All kinds of faults until shortly before the first window; after that only of the echo workers and one
            other, so that the memory of the rest can be compared."""
            late = {rng.choice([worker.id for worker in server.workers if worker.kind != "echo"])}
            late |= {worker.id for worker in server.workers if worker.kind == "echo"}
            while (minute := (time.monotonic() - began) / 60) < options.minutes - min(
                LAST_FAULT_S / 60, options.minutes / 3
            ):
                await asyncio.sleep(rng.uniform(*PAUSE_S))
                early = minute < windows.early[0] - CALM_MINUTES
                targets = [worker for worker in server.workers if early or worker.id in late]
                await faults.inject(targets, with_core=early)
                print(
                    f"minute {minute:.1f}: {faults.all[-1].kind}, {record.requests} requests, "
                    f"{record.fault_count} faults",
                    flush=True,
                )

        tasks = [asyncio.create_task(measure()), asyncio.create_task(injure())]
        modes = asyncio.create_task(hive.misbehave(rng, stop))
        users = [use(server, faults, record, f"{options.seed}/{user}", stop, began) for user in range(USERS)]
        clients = [asyncio.create_task(user) for user in users]
        await asyncio.sleep(60 * options.minutes)
        stop.set()
        await asyncio.gather(*clients, *tasks)
        problems = [*faults.problems, *await _settled(server)]
        await check_all(server, record, faults, began)
        await asyncio.sleep(2 * HEARTBEAT_S)
        problems += hive.faults()
        if silent := {worker.id for worker in server.workers} - hive.known():
            problems.append(f"the orchestrator does not know {', '.join(sorted(silent))} at the end")
        processes = _processes(server)
        stopped = await asyncio.to_thread(server.stop)
        if left := [process for process in processes if process.is_running()]:
            problems.append(f"{len(left)} processes outlive the stop: {', '.join(process.name() for process in left)}")
        counts = await modes
    memory.save(readings, options.output)
    growths = memory.growths(readings, windows)
    leftovers = server.leftovers()
    return Result(
        record, faults.all, problems, counts, hive.messages(), growths, windows, leftovers, stopped, temp_files
    )


async def _settled(server: Server) -> list[str]:
    """The fault if requests are still counted `QUIET_S` after the last one."""
    deadline = time.monotonic() + QUIET_S
    counts: dict[str, int] = {}
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            counts = await asyncio.to_thread(server.open_requests)
            if not counts:
                return []
        await asyncio.sleep(0.5)
    return [f"requests that nobody sent are counted: {counts}"]


def _processes(server: Server) -> list[psutil.Process]:
    root = psutil.Process(server.pid)
    return [root, *root.children(recursive=True)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, required=True, help="30 for the verdict about memory")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices")
    parser.add_argument("--config", type=Path, default=ROOT / "serve_config.yaml", help="the workers beside echo")
    parser.add_argument("--no-llm", action="store_true", help="without the workers on vLLM, which take long to load")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/raw/quick/soak.csv", help="all readings")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
