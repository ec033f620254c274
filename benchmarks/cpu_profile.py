"""CPU time of each step of a request, and of an event, in the echo application.

The total comes from `/proc`, in a first run of the load. A second run under py-spy only gives the proportions within
Python threads: samples are taken of the thread that holds the GIL, so kernel time of a thread that has released it is
distributed over all steps. On busy cores a step with system calls waits there and appears more expensive than it is.
Ray's own threads, which run no Python, are a row of their own.

    python -m benchmarks.cpu_profile --seconds 5
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.echo import CLIENTS, PROMPT, WORDS
from benchmarks.load import LoadError, StreamLoad, StreamReader, requests
from benchmarks.method import table
from benchmarks.processes import Stopwatch, process_name
from benchmarks.servers import Server, ours
from benchmarks.stacks import Stack, by_step, parse_stacks

DEPLOYMENTS = {"ingress": "ingress", "replica": "echo-0"}
NATIVE = "Ray's own threads, without Python"
RATE = 200
"""Samples per second."""
LEAST = 0.005
"""Steps below this share of a process are summed up in one row."""

Load = Callable[[float], int]
"""Loads the server for some seconds, and returns the number of completed requests or events."""


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU microseconds of a process per unit of work, by step; `others_us` is the sum of all other processes."""

    us: Mapping[str, Counter[str]]
    others_us: float


def main() -> None:
    """Measure and print."""
    options = _options()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reader = StreamReader()
        stack.callback(reader.close)
        worker = {"id": "echo-0", "type": "echo", "cpus": 0, "max_ongoing_requests": 200}
        server = ours(stack, folder, worker, {"prompt": "hello", "stream": False})
        keep = options.stacks or folder
        keep.mkdir(parents=True, exist_ok=True)
        lines = []
        for unit, load in _loads(server, reader, options.words).items():
            with server.awake():
                load(1.0)
                lines += _lines(unit, _cost(server, load, options.seconds, keep / f"{unit.partition(' ')[0]}"))
        print(table(["unit", "process", "step", "CPU µs", "%"], lines))


def _loads(server: Server, reader: StreamReader, words: int) -> dict[str, Load]:
    short = json.dumps({"prompt": "hello world", "stream": False}).encode()
    long = json.dumps({"prompt": PROMPT, "repeat": words // WORDS}).encode()

    def request(seconds: float) -> int:
        return requests(server.target, short, CLIENTS, seconds).count

    def stream(seconds: float) -> int:
        return reader.read(StreamLoad(server.target, [long], CLIENTS, seconds)).all_frames

    return {"request": request, f"event of {words} words": stream}


def _cost(server: Server, load: Load, seconds: float, keep: Path) -> Cost:
    processes = {name: _process(server, deployment) for name, deployment in DEPLOYMENTS.items()}
    watch = Stopwatch(server.tree)
    before = {name: _thread_cpu(process) for name, process in processes.items()}
    count = load(seconds)
    used = {name: _thread_cpu(process) - before[name] for name, process in processes.items()}
    all_s = watch.cpu_s()
    stacks = _sampled(processes, lambda: load(seconds + 1), seconds, keep)
    costs = {name: _split(stacks[name], used[name], count) for name in processes}
    others_s = all_s - sum(cpu.total() for cpu in used.values())
    return Cost(costs, 1e6 * others_s / count)


def _split(stacks: list[Stack], used: Counter[int], count: int) -> Counter[str]:
    """A process's CPU per unit by step; its Python threads in the proportions of the samples."""
    threads = {stack.thread for stack in stacks}
    python_us = 1e6 * sum(cpu for thread, cpu in used.items() if thread in threads) / count
    samples = by_step(stacks)
    split: Counter[str] = Counter()
    for step, number in samples.items():
        split[step] = python_us * number / samples.total()  # type: ignore[assignment]
    split[NATIVE] = 1e6 * used.total() / count - python_us  # type: ignore[assignment]
    return split


def _sampled(
    processes: Mapping[str, psutil.Process], load: Callable[[], object], seconds: float, keep: Path
) -> dict[str, list[Stack]]:
    """The stacks of each process under a load that lasts a little longer than the sampling."""
    files = {name: keep.with_name(f"{keep.name}-{name}.txt") for name in processes}
    spies = [_spy(process.pid, seconds, files[name]) for name, process in processes.items()]
    load()
    for spy in spies:
        output, _ = spy.communicate(timeout=60)
        if spy.returncode != 0:
            raise LoadError(f"py-spy could not attach; where ptrace is restricted run it as root:\n{output}")
    return {name: parse_stacks(file.read_text().splitlines()) for name, file in files.items()}


def _spy(pid: int, seconds: float, output: Path) -> subprocess.Popen[str]:
    command = [str(_py_spy()), "record", "--pid", str(pid), "--gil", "--threads", "--format", "raw"]
    command += ["--rate", str(RATE), "--duration", f"{seconds:.0f}", "--output", str(output)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _py_spy() -> Path:
    beside = Path(sys.executable).with_name("py-spy")
    found = beside if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise LoadError("py-spy is missing; pip install 'rbee-serve[dev]'")
    return Path(found)


def _process(server: Server, deployment: str) -> psutil.Process:
    """The replica of a deployment that has one."""
    [found] = [process for process in server.tree.processes() if process_name(process).endswith(f":{deployment}")]
    return found


def _thread_cpu(process: psutil.Process) -> Counter[int]:
    """CPU seconds by thread."""
    used: Counter[int] = Counter()
    for thread in process.threads():
        used[thread.id] = thread.user_time + thread.system_time  # type: ignore[assignment]
    return used


def _lines(unit: str, cost: Cost) -> list[list[str]]:
    lines = []
    for process, us in cost.us.items():
        total = us.total()
        shown = {step: value for step, value in us.most_common() if value >= LEAST * total}
        lines.append([unit, process, "all", f"{total:.1f}", ""])
        lines += [[unit, process, step, f"{value:.1f}", f"{100 * value / total:.0f}"] for step, value in shown.items()]
        lines.append([unit, process, "smaller ones", f"{total - sum(shown.values()):.1f}", ""])
    return [*lines, [unit, "all others", "all", f"{cost.others_us:.1f}", ""]]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one run; each load has two")
    parser.add_argument("--words", type=int, default=100, help="words in a stream")
    parser.add_argument("--stacks", type=Path, help="a folder to keep py-spy's stacks in, for a flame graph")
    return parser.parse_args()


if __name__ == "__main__":
    main()
