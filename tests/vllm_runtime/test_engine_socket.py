"""Messages from an engine's processes to the replica, without vLLM."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from deployments.vllm_runtime.engine_socket import LISTENER, EngineSocket, send_failure, send_progress
from deployments.vllm_runtime.failure_report import FATAL, report_failures
from deployments.vllm_runtime.running_engine import RunningEngine
from rbee_serve.state import LoadProgress

PROCESS = """
import sys
from deployments.vllm_runtime.engine_socket import *
send_progress(LoadProgress(stage="loading_to_vram", bytes_done=3))
print(flush=True)
sys.stdin.readline()
send_failure("ValueError: no room")
send_failure("RuntimeError: a process before this one has failed")
"""


class Llm:
    """An `AsyncLLM` that has ended."""

    errored = True

    def shutdown(self) -> None:
        """Nothing to end."""


def running(tmp_path: Path, failure: str | None) -> RunningEngine:
    engine_socket = EngineSocket(tmp_path)
    with engine_socket.loading(lambda progress: None):
        if failure is not None:
            send_failure(failure)
    return RunningEngine(Llm(), engine_socket)


def test_progress_and_failure_of_a_process_reach_the_replica(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    received: list[LoadProgress] = []
    engine_socket = EngineSocket(tmp_path)
    with engine_socket.loading(received.append):
        process = subprocess.Popen([sys.executable, "-c", PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        send_progress(LoadProgress(stage="preparing_engine"))
        deadline = time.monotonic() + 5
        while len(received) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert received == [LoadProgress(stage="loading_to_vram", bytes_done=3), LoadProgress(stage="preparing_engine")]
    assert LISTENER not in os.environ
    send_progress(LoadProgress(stage="nobody listens"))
    assert engine_socket.failure() is None
    process.communicate(b"\n")  # the engine fails long after its load
    assert engine_socket.failure() == "ValueError: no room"
    assert caplog.text.count("ValueError: no room") == 1
    engine_socket.close()
    assert engine_socket.failure() == "ValueError: no room"
    assert list(tmp_path.iterdir()) == []
    assert len(received) == 2


def test_a_load_that_reports_faster_than_it_is_read_ends_all_the_same(tmp_path: Path) -> None:
    engine_socket = EngineSocket(tmp_path)
    with engine_socket.loading(lambda progress: time.sleep(0.05)):
        for _ in range(100):
            send_progress(LoadProgress(stage="loading_to_vram"))
    engine_socket.close()


def test_the_exception_that_ends_a_process_is_reported_and_that_of_a_request_is_not(tmp_path: Path) -> None:
    core, executor = map(logging.getLogger, FATAL)
    handlers = [(logger, list(logger.handlers)) for logger in (core, executor)]
    engine_socket = EngineSocket(tmp_path)
    try:
        with engine_socket.loading(lambda progress: None):
            report_failures()
            for logger, message in (
                (core, "Invocation of %s method failed"),
                (executor, "WorkerProc hit an exception."),
                (executor, "WorkerProc failed to start."),
                (core, "EngineCore failed to start."),
            ):
                try:
                    raise ValueError(f"too small,\nsays {message}")
                except ValueError:
                    logger.exception(message, *["add_lora"] * message.count("%s"))
            core.error("EngineCore failed to start, without an exception")
        assert engine_socket.failure() == "ValueError: too small, says WorkerProc failed to start."
    finally:
        for logger, before in handlers:
            logger.handlers[:] = before
        engine_socket.close()


def test_the_installed_vllm_logs_these_messages() -> None:
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    for name, beginnings in FATAL.items():
        source = Path(spec.origin).parent.parent.joinpath(*name.split(".")).with_suffix(".py").read_text()
        assert [beginning for beginning in beginnings if f'logger.exception("{beginning}' not in source] == []


@pytest.mark.parametrize(
    ("failure", "code", "why"),
    [
        (None, "WORKER_LOST", "its engine is dead"),
        (
            "RuntimeError: Worker failed with error 'CUDA out of memory. Tried to allocate 2 GiB', private",
            "INSUFFICIENT_VRAM",
            "its engine has ended: GPU memory ran out; see the worker's log",
        ),
        (
            "MemoryError: private",
            "INSUFFICIENT_RESOURCES",
            "its engine has ended: memory ran out; see the worker's log",
        ),
        (
            "AcceleratorError: CUDA error: an illegal memory access was encountered, private",
            "WORKER_LOST",
            "its engine has ended: the accelerator failed; see the worker's log",
        ),
        ("KeyError: private", "WORKER_LOST", "its engine has ended: KeyError; see the worker's log"),
    ],
)
def test_the_end_of_an_engine_has_its_reason_and_no_text_of_a_request(
    tmp_path: Path, failure: str | None, code: str, why: str
) -> None:
    engine = running(tmp_path, failure)
    assert not engine.alive
    assert engine.why_dead() == why
    assert (engine.error().code, engine.error().retriable) == (code, True)
    assert "private" not in engine.error().message
    engine.close()
    assert list(tmp_path.iterdir()) == []
