from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.processes import ProcessTree, process_name

SLEEP = "import time; time.sleep(30)"


@pytest.mark.parametrize("options", [["-m", "slow_to_end"], ["slow_to_end.py", "--once"]])
def test_a_python_program_has_the_name_of_its_module(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "slow_to_end.py").write_text(SLEEP)
    process = subprocess.Popen([sys.executable, *options], cwd=tmp_path)
    try:
        while not psutil.Process(process.pid).cmdline():  # the kernel gives it a moment after the start
            assert process.poll() is None
        assert process_name(psutil.Process(process.pid)) == "slow_to_end"
    finally:
        process.kill()
        process.wait()


def test_shared_memory_is_divided_among_the_processes(tmp_path: Path) -> None:
    tree = ProcessTree(["sh", "-c", "sleep 30 & sleep 30 & wait"], {}, tmp_path / "log")
    while set(held := tree.memory_bytes()) != {"sh", "sleep"}:
        assert tree.running
    tree.end()
    assert all(10_000 < size < 10_000_000 for size in held.values())
