"""The lines of the workers that are shown."""

from __future__ import annotations

import pytest

from rbee_serve.supervisor.worker_output import worth_showing

LINES = [
    "2026-11-23 05:20:06,549 WARNING rbee_serve.replica.loading [-] the file is slow",
    "2026-11-23 05:20:06,549 INFO rbee_serve.ingress.inference [corr-1] llm-0 end",
    "2026-11-23 05:20:06,549 ERROR rbee_serve.ingress.inference [corr-1] llm-0 failed",
    "INFO 11-23 05:20:06 [gpu_model_runner.py:1] something of vLLM",
    "",
]


@pytest.mark.parametrize(
    ("verbose", "shown"),
    [
        (False, ["llm-0: the file is slow", "llm-0: llm-0 failed [corr-1]"]),
        (True, [f"llm-0: {line}" for line in LINES]),
    ],
)
def test_warnings_of_rbee_serve_or_all_lines_are_shown_with_the_workers_name(verbose: bool, shown: list[str]) -> None:
    assert list(worth_showing("ServeReplica:rbee:llm-0", LINES, verbose)) == shown
