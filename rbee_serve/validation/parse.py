"""A request's JSON as a checked request, or every violation in it. The ingress and the replica both call this.

    bytes ── is it JSON of bearable size? ──→ pydantic ──→ request
                        └── no                   └── no ──→ InvalidRequest with one Violation for each fault

The cost is bounded by the size of the body, whatever is in it: what would make many errors slowly is refused before,
and only the first errors are told. Where a key is given twice, the last one counts, as in most parsers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError

from rbee_serve.errors import InvalidRequest, Violation
from rbee_serve.request import InferenceRequest
from rbee_serve.validation.field_path import BODY
from rbee_serve.validation.limits import with_limits
from rbee_serve.validation.violations import merged, violated, violation_of

__all__ = ["parse", "parse_object", "violated", "with_limits"]

RequestT = TypeVar("RequestT", bound=InferenceRequest)

MAX_VIOLATIONS = 64
"""So many are told; the rest is counted."""
MAX_ERRORS = 1000
"""Beyond this many they are only counted: to have pydantic list them costs 13 µs and half a kilobyte each."""
MAX_VALUES = 100_000
"""Values in a body, give or take its keys and brackets. A wrong one costs pydantic 3 µs."""

_STRING = re.compile(rb'"[^"]*"')
_POSITION = re.compile(r" at (line \d+ column \d+)$")
_NOT_UTF8 = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\x00")


def check_form(body: bytes) -> None:
    """Raise `InvalidRequest` where `body` is not in UTF-8, or holds so many values that reading them would be slow."""
    if body.startswith(_NOT_UTF8) or body[1:2] == b"\x00":
        raise InvalidRequest.of_field(BODY, "json", "must be UTF-8 without a byte order mark")
    if _has_too_many_values(body):
        raise InvalidRequest.of_field(BODY, f"values <= {MAX_VALUES}", f"must not hold more than {MAX_VALUES} values")


def parse(request_type: type[RequestT], body: bytes) -> RequestT:
    """The request that `body` holds as JSON. Raises `InvalidRequest` with every violation."""
    check_form(body)
    return _checked(request_type, lambda: request_type.model_validate_json(body))


def parse_object(request_type: type[RequestT], fields: dict[str, Any], *, strict: bool | None = None) -> RequestT:
    """The request that has these fields, for callers in Python. Raises `InvalidRequest` as `parse` does.

    `strict=False` is for fields that were validated before and have crossed as MessagePack, which turns a tuple into a
    list and an enum into its value."""
    return _checked(request_type, lambda: request_type.model_validate(fields, strict=strict))


def _checked(request_type: type[RequestT], validate: Callable[[], RequestT]) -> RequestT:
    try:
        return validate()
    except ValidationError as exc:
        violations = _violations(request_type, exc)
    except ValueError:  # from within pydantic, about an integer of thousands of digits in a Python object
        violations = [Violation(BODY, "finite", "holds a number that is too large")]
    raise InvalidRequest.because(violations)


def _violations(request_type: type[InferenceRequest], exc: ValidationError) -> list[Violation]:
    count = exc.error_count()
    if count > MAX_ERRORS:
        return [Violation(BODY, "valid", f"has {count} faults, which is too many to list")]
    errors = exc.errors(include_url=False)
    if errors[0]["type"] == "json_invalid":
        return [_bad_json(str(errors[0].get("ctx", {}).get("error", "")))]
    violations = merged([violation_of(request_type, error) for error in errors])
    rest = len(violations) - MAX_VIOLATIONS
    if rest > 0:
        return [*violations[:MAX_VIOLATIONS], Violation(BODY, "valid", f"has {rest} more faults")]
    return violations


def _bad_json(reason: str) -> Violation:
    position = match[1] if (match := _POSITION.search(reason)) else "its beginning"
    if reason.startswith("EOF while parsing a value at line 1 column 0"):
        return Violation(BODY, "json", "is empty; send a JSON object")
    if reason.startswith("recursion limit"):
        return Violation(BODY, "depth", f"is nested too deep at {position}")
    if reason.startswith("number out of range"):
        return Violation(BODY, "json", f"holds a number with too many digits at {position}")
    return Violation(BODY, "json", f"is not valid JSON in UTF-8; look at {position}")


def _has_too_many_values(body: bytes) -> bool:
    """Counts the commas outside of strings, in time that grows with the body and by a few passes in C only."""
    if body.count(b",") < MAX_VALUES:
        return False
    bare = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if bare.count(b'"') > 4 * MAX_VALUES:  # each value and each key is at most one string
        return True
    return _STRING.sub(b"", bare).count(b",") >= MAX_VALUES
