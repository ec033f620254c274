"""Two tiers of tests: `make test` runs those without the mark `full`, `make test-all` runs all of them.

A test that starts Ray, loads a model or needs a GPU is `full` unless `MAKE_TEST` lists it. `make test-all` fails where
a test is skipped that `SKIPS` does not list.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable

import pytest

EXPENSIVE = ("ray", "vllm", "model", "gpu")
"""Marks of the tests that are `full` by default."""

MAKE_TEST = (
    # One application with the workers of serve_config.yaml and some echo workers, through our own listener.
    r"served/test_worker_contract\.py::test_a_stream_",
    r"served/test_worker_contract\.py::test_an_unknown_field_",
    r"served/test_worker_contract\.py::test_a_disconnect_",
    r"served/test_protocol\.py::",
    r"served/test_handles\.py::",
    r"served/test_streams\.py::",
    r"served/test_ray_headers\.py::",
    r"served/test_disconnects\.py::test_a_disconnect_",
    r"served/test_bad_input\.py::",
    r"served/test_origin\.py::",
    r"served/test_keys\.py::.*\[own\]",
    r"served/test_faults\.py::test_a_worker_that_is_killed_",
    r"served/test_faults\.py::test_an_out_of_memory_error_",
    r"served/test_replacement\.py::test_every_answer_",
    # One life of the supervisor.
    r"supervisor/test_life\.py::\w+_sigterm_drains",
    # Small models in the process of the tests, where that takes a few seconds.
    r"embedding/test_(embedding_worker|packed_attention)\.py::",
    r"llm/test_chat_template\.py::",
    r"test_reranker\.py::",
    r"torch_runtime/",
    r"vision/test_(classify|inpainting|vision_generate)\.py::",
)
"""Patterns of node ids below `tests/`. With another frontend than our own listener a test is `full` all the same."""

SKIPS: dict[str, str] = {
    r"torch_runtime/test_cuda_graphs\.py::": "CUDA graphs need an NVIDIA GPU",
    r"test_import_rules\.py::": "the test of what git tracks needs a checkout",
}
"""Patterns of node ids below `tests/` that may be skipped in `make test-all`, and why."""


def listed(nodeid: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns matches a node id below `tests/`."""
    return any(re.match(f"tests/{pattern}", nodeid) for pattern in patterns)


def is_full(item: pytest.Item) -> bool:
    """Whether only `make test-all` runs the test."""
    if not any(item.get_closest_marker(mark) for mark in EXPENSIVE):
        return False
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return parameters.get("frontend", "own") != "own" or not listed(item.nodeid, MAKE_TEST)


class Tiers:
    """The plugin: adds the mark `full`, and with `--no-unlisted-skips` turns unlisted skips into failures."""

    def __init__(self, fail_on_unlisted_skips: bool) -> None:
        self._fail = fail_on_unlisted_skips

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Mark the tests before `-m` selects. A pattern that matches no test of the whole suite is an error."""
        for item in items:
            if is_full(item):
                item.add_marker(pytest.mark.full)
        if config.args_source == pytest.Config.ArgsSource.TESTPATHS and not session.testsfailed:
            stale = [p for p in MAKE_TEST if not any(listed(item.nodeid, [p]) for item in items)]
            if stale:
                raise pytest.UsageError(f"tests/tiers.py: no test matches {', '.join(stale)}")

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """A module that skips itself while it is imported."""
        report = yield
        if self._fail and report.skipped and not listed(collector.nodeid + "::", SKIPS):
            report.outcome = "failed"
            report.longrepr = refusal(report.longrepr)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """A test that skips itself, or is skipped by a mark."""
        report = yield
        if self._fail and report.skipped and not hasattr(report, "wasxfail") and not listed(item.nodeid, SKIPS):
            report.outcome = "failed"
            report.longrepr = refusal(report.longrepr)
        return report


def refusal(reason: object) -> str:
    """The message of a skip that is a failure."""
    text = reason[-1] if isinstance(reason, tuple) else reason
    return f"{text}\nInstall what the test needs, or list the skip with its reason in SKIPS of tests/tiers.py."
