"""From the wire form of an error to the error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rbee_serve.errors import InternalError, Violation, WorkerError


def _family(base: type[WorkerError]) -> list[type[WorkerError]]:
    return [base, *(found for child in base.__subclasses__() for found in _family(child))]


def error_from_code(code: str, message: str) -> WorkerError:
    """The error whose wire code is `code`; an unknown code is an `InternalError` with the same message.

    Where a class refines another with the same code, the general one is returned: they are equal on the wire.
    """
    for error_type in _family(WorkerError)[1:]:
        if error_type.code == code:
            return error_type(message)
    return InternalError(message)


def error_from_json(fields: Mapping[str, Any]) -> WorkerError:
    """The error whose `WorkerError.to_json` is `fields`; malformed parts are left out."""
    error = error_from_code(str(fields.get("code")), str(fields.get("message")))
    error.violations = tuple(_violations(fields.get("errors")))
    if isinstance(url := fields.get("progress_url"), str):
        error.progress_url = url
    return error


def _violations(listed: Any) -> Iterator[Violation]:
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, dict):
            field, constraint, message = (str(item.get(name, "")) for name in ("field", "constraint", "message"))
            yield Violation(field, constraint, message, item.get("value"), "value" in item)
