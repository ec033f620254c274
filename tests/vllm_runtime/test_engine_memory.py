"""The GPU memory that vLLM's processes report to their replica. No test loads vLLM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deployments.vllm_runtime.engine_memory import engine_bytes, write_report
from deployments.vllm_runtime.socket_folder import FOLDER, OURS

ENGINE = """
import sys
from deployments.vllm_runtime.engine_memory import write_report
for held in sys.argv[1:]:
    write_report(int(held))
print(flush=True)
sys.stdin.read()
"""


def engine(*held: int) -> subprocess.Popen[str]:
    """A process of the engine, which has reported these bytes one after another."""
    command = [sys.executable, "-c", ENGINE, *map(str, held)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_the_replica_adds_up_the_last_reports_of_the_processes_that_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setenv(OURS, str(tmp_path))
    write_report(7)  # this process is none of the engine's
    assert engine_bytes() == 0
    first, second, idle = engine(1, 40), engine(2), engine(0)
    assert engine_bytes() == 42
    first.communicate()
    assert engine_bytes() == 2
    for process in (second, idle):
        process.communicate()
    assert engine_bytes() == 0


@pytest.mark.parametrize("chosen", [None, "/chosen/by/the/operator"])
def test_without_a_folder_of_our_own_nothing_is_reported(
    chosen: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.delenv(OURS, raising=False)
    if chosen:
        monkeypatch.setenv(FOLDER, chosen)
    monkeypatch.chdir(tmp_path)
    write_report(7)
    assert engine_bytes() == 0
    assert list(tmp_path.iterdir()) == []


def test_a_report_after_the_end_of_the_replica_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (FOLDER, OURS):
        monkeypatch.setenv(name, str(tmp_path / "removed"))
    write_report(7)
    assert list(tmp_path.iterdir()) == []
