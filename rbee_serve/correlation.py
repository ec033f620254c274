"""The correlation id of the current request, and log records that carry it."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from contextvars import ContextVar
from types import TracebackType

from rbee_serve.request import new_id

_SERVE = "ray.serve"
HEADER = "x-correlation-id"
_ACCEPTED = re.compile(r"[A-Za-z0-9._-]{1,128}")
_current: ContextVar[str | None] = ContextVar("correlation_id", default=None)


def accept(candidate: str | None) -> str:
    """`candidate` if it is a well-formed id, else a new one."""
    return candidate if candidate and _ACCEPTED.fullmatch(candidate) else new_id("corr")


def enter(correlation_id: str) -> None:
    """Set the correlation id of the running task and of every task that it starts."""
    _current.set(correlation_id)


def current() -> str | None:
    """The id of the running task's request; None outside of a request."""
    return _current.get()


class CorrelationFilter(logging.Filter):
    """Adds a `correlation_id` to every record, `-` outside of a request."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Never drops a record."""
        record.correlation_id = current() or "-"
        return True


class _Formatter(logging.Formatter):
    """One line, followed by the traceback, if there is one. It avoids `print`: Serve replaces that in a replica by
    one that writes tuples into everything but the terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s [%(correlation_id)s] %(message)s")

    def formatException(  # noqa: N802
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        """The traceback as Python shows it."""
        return "".join(traceback.format_exception(*ei)).rstrip("\n")


class _ServeLogHandler(logging.Handler):
    """Forwards records to Ray Serve's logger, which writes them to a rotating file."""

    def emit(self, record: logging.LogRecord) -> None:
        """Forward the formatted line."""
        line = logging.LogRecord.__new__(logging.LogRecord)  # a copy: a new one would look up the caller again
        line.__dict__.update(record.__dict__, msg=self.format(record), args=None)
        # Serve writes records to stderr too unless this is false; warnings are there already.
        line.__dict__["log_to_stderr"] = record.levelno < logging.WARNING
        logging.getLogger(_SERVE).handle(line)


def configure_logging(level: int = logging.INFO) -> None:
    """Send `rbee_serve` records to stderr, one line each, with the correlation id. Does nothing the second time.

    Where Ray Serve logs to a file for this process, they go there, and only warnings go to stderr.
    """
    logger = logging.getLogger("rbee_serve")
    if any(isinstance(f, CorrelationFilter) for handler in logger.handlers for f in handler.filters):
        return
    # Not `sys.stderr`: in a replica Serve replaces it by an object that walks the stack for each line.
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.__stderr__)]
    if logging.getLogger(_SERVE).handlers:
        handlers[0].setLevel(logging.WARNING)
        handlers.append(_ServeLogHandler())
    for handler in handlers:
        handler.addFilter(CorrelationFilter())
        handler.setFormatter(_Formatter())
        logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
