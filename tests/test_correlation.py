"""The lines of the log."""

from __future__ import annotations

import builtins
import logging
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import pytest

from rbee_serve.correlation import configure_logging, enter


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The logger of the package, without handlers before and after."""
    logger = logging.getLogger("rbee_serve")
    before, logger.handlers = logger.handlers, []
    propagate, level = logger.propagate, logger.level
    yield logger
    logger.handlers, logger.propagate = before, propagate
    logger.setLevel(level)


def test_a_traceback_is_readable_where_print_is_replaced(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_logging()
    plain = builtins.print

    def print_tuples(*objects: Any, **options: Any) -> None:
        """The replacement that Ray Serve installs in replicas."""
        plain(objects, **options)

    try:
        raise ValueError("no weights")
    except ValueError as exc:
        record = logging.LogRecord(
            "rbee_serve.replica", logging.ERROR, __file__, 1, "failed", None, (ValueError, exc, exc.__traceback__)
        )
    monkeypatch.setattr(builtins, "print", print_tuples)
    record.correlation_id = "corr-1"
    text = logger.handlers[0].format(record)
    first, *_, last = text.splitlines()
    assert first.endswith("ERROR rbee_serve.replica [corr-1] failed")
    assert last == "ValueError: no weights"
    assert "\nTraceback (most recent call last):\n  File " in text


def test_a_record_carries_the_id_of_its_request_and_a_second_call_changes_nothing(logger: logging.Logger) -> None:
    configure_logging()
    handlers = list(logger.handlers)
    configure_logging()
    assert logger.handlers == handlers

    def logged() -> str:
        record = logging.LogRecord("rbee_serve.ingress", logging.WARNING, __file__, 1, "slow: %s", ("llm-0",), None)
        assert handlers[0].filter(record)
        return handlers[0].format(record)

    def logged_within(correlation_id: str) -> str:
        enter(correlation_id)
        return logged()

    assert logged().endswith("WARNING rbee_serve.ingress [-] slow: llm-0")
    assert copy_context().run(logged_within, "corr-2").endswith("[corr-2] slow: llm-0")
