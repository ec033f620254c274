"""Exceptions of libraries as the errors of requests, and of loads."""

from __future__ import annotations

import pytest

from rbee_serve.errors import ConfigurationError, InsufficientVram, InternalError, InvalidRequest
from rbee_serve.replica.foreign_errors import error_from_backend, error_from_exit, error_from_load
from rbee_serve.replica.loading import reason

FAILURES = [
    (RuntimeError("CUDA failed with error out of memory, private"), "INSUFFICIENT_VRAM"),
    (MemoryError("private"), "INSUFFICIENT_RESOURCES"),
    (RuntimeError("CUDA error: device-side assert triggered, private"), "CUDA_ERROR"),
    (RuntimeError("CUDA error: invalid argument, private"), "CUDA_ERROR"),
]


@pytest.mark.parametrize(("error", "code"), [*FAILURES, (TimeoutError("private"), "INFERENCE_TIMEOUT")])
def test_a_failure_of_a_request_has_its_code_and_not_the_library_s_text(error: Exception, code: str) -> None:
    found = error_from_backend(error)
    assert (found.code, found.retriable) == (code, True)
    assert "private" not in found.message


@pytest.mark.parametrize(("error", "code"), FAILURES)
def test_a_failure_of_a_load_has_its_code_and_the_library_s_text(error: Exception, code: str) -> None:
    assert reason(error, "llm-0")[0] == code
    known = error_from_load(error)
    assert known is not None
    assert known.code == code
    assert known.message.endswith("private)")


@pytest.mark.parametrize(("error", "code"), FAILURES)
def test_a_failure_after_the_load_has_its_code_and_not_the_library_s_text(error: Exception, code: str) -> None:
    found, message = reason(error, "llm-0", loaded=True)
    assert (found, message) == (
        code, f"worker llm-0: its backend has failed ({type(error).__name__}); see the worker's log",
    )  # fmt: skip


@pytest.mark.parametrize(
    "error", [ValueError("private"), ConfigurationError("no model"), InvalidRequest("no"), InsufficientVram("9 GB")]
)
def test_any_other_failure_of_a_load_stays_as_it_is(error: Exception) -> None:
    assert error_from_load(error) is None
    assert "private" not in reason(error, "llm-0")[1]


def test_a_process_that_ends_during_its_load_is_reported_with_what_it_wrote_last() -> None:
    ended = "the engine's process ended during the load: "
    error = error_from_exit("exit status 1", "ImportError: libcuda.so.1: no such file")
    assert isinstance(error, ConfigurationError)
    assert str(error) == f"{ended}exit status 1 (ImportError: libcuda.so.1: no such file)"
    assert str(error_from_exit("SIGSEGV", "")) == f"{ended}SIGSEGV; see the worker's log"
    assert "memory runs out" in str(error_from_exit("SIGKILL", "a warning"))
    assert isinstance(error_from_exit("SIGABRT", "  what():  CUDA failed with error out of memory"), InsufficientVram)


def test_an_error_of_an_unknown_kind_is_internal() -> None:
    assert isinstance(error_from_backend(KeyError("private")), InternalError)
