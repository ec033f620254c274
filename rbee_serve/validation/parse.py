"""From the JSON of a request to a validated request, or to every violation in it. Ingress and replica both call this.

    bytes ── check_body ──→ pydantic ──→ request
                 └───────────────┴─────→ InvalidRequest with one Violation for each error

The size of the body bounds the cost, whatever it contains: bodies that would produce many errors slowly are refused
first, and only the first errors are listed. Of duplicate keys the last one counts, as in most parsers.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json, to_json

from rbee_serve.errors import InvalidRequest, Violation
from rbee_serve.request import InferenceRequest
from rbee_serve.validation.equivalents import with_equivalents
from rbee_serve.validation.field_path import BODY
from rbee_serve.validation.limits import with_limits
from rbee_serve.validation.violations import merged, violated, violation_of

__all__ = ["parse", "parse_object", "violated", "with_limits"]

RequestT = TypeVar("RequestT", bound=InferenceRequest)

MAX_VIOLATIONS = 64
"""At most this many are listed; the rest is counted."""
MAX_ERRORS = 1000
"""More pydantic errors are only counted: listing one costs 13 µs and half a kilobyte."""
MAX_VALUES = 100_000
"""Values in a body, counted by commas. An invalid one costs pydantic 3 µs."""

_STRING = re.compile(rb'"[^"]*"')
_POSITION = re.compile(r" at (line \d+ column \d+)$")
_NOT_UTF8 = (b"\xff\xfe", b"\xfe\xff", b"\x00")


def check_body(body: bytes) -> bytes:
    """`body` without a byte order mark. Raises `InvalidRequest` if it is not UTF-8 or has more than `MAX_VALUES`
    values."""
    body = body.removeprefix(BOM_UTF8)
    if body.startswith(_NOT_UTF8) or body[1:2] == b"\x00":
        raise InvalidRequest.of_field(BODY, "json", "is UTF-16 or UTF-32; send JSON in UTF-8")
    if _has_too_many_values(body):
        raise InvalidRequest.of_field(BODY, f"values <= {MAX_VALUES}", f"must have at most {MAX_VALUES} values")
    return body


def parse(request_type: type[RequestT], body: bytes) -> RequestT:
    """The request in a JSON body. Raises `InvalidRequest` with every violation."""
    body = check_body(body)
    return _validated(request_type, request_type.model_validate_json, body)


def parse_object(request_type: type[RequestT], fields: dict[str, Any], *, strict: bool | None = None) -> RequestT:
    """The request with these fields, for callers in Python. Raises `InvalidRequest` as `parse` does.

    `strict=False` is for fields that were validated before and crossed as MessagePack, which turns a tuple into a list
    and an enum into its value."""
    return _validated(request_type, partial(request_type.model_validate, strict=strict), fields)


def _validated(request_type: type[RequestT], validate: Callable[[Any], RequestT], source: Any) -> RequestT:
    """The request in JSON (`bytes`) or in an object. What it has for equivalents is replaced only if it is refused, so
    the usual request pays nothing."""
    try:
        try:
            return validate(source)
        except ValidationError as exc:
            errors = _listed(exc)
            if not any(error["input"] is None or isinstance(error["input"], float) for error in errors):
                raise
            fields = from_json(source) if isinstance(source, bytes) else source
            replaced = with_equivalents(request_type, fields)
            if replaced is fields:
                raise
            return validate(to_json(replaced, inf_nan_mode="constants") if isinstance(source, bytes) else replaced)
    except ValidationError as exc:
        violations = _violations(request_type, exc)
    except ValueError:  # raised inside pydantic for an integer of thousands of digits in a Python object
        violations = [Violation(BODY, "finite", "has a number that is too large")]
    raise InvalidRequest.because(violations)


def _listed(exc: ValidationError) -> list[ErrorDetails]:
    """The errors; none if they are too many to list."""
    return exc.errors(include_url=False) if exc.error_count() <= MAX_ERRORS else []


def _violations(request_type: type[InferenceRequest], exc: ValidationError) -> list[Violation]:
    count = exc.error_count()
    if count > MAX_ERRORS:
        return [Violation(BODY, "valid", f"has {count} errors, too many to list")]
    errors = _listed(exc)
    if errors[0]["type"] == "json_invalid":
        return [_bad_json(str(errors[0].get("ctx", {}).get("error", "")))]
    violations = merged([violation_of(request_type, error) for error in errors])
    rest = len(violations) - MAX_VIOLATIONS
    if rest > 0:
        return [*violations[:MAX_VIOLATIONS], Violation(BODY, "valid", f"has {rest} more errors")]
    return violations


def _bad_json(reason: str) -> Violation:
    position = match[1] if (match := _POSITION.search(reason)) else "its beginning"
    if reason.startswith("EOF while parsing a value at line 1 column 0"):
        return Violation(BODY, "json", "is empty; send a JSON object")
    if reason.startswith("recursion limit"):
        return Violation(BODY, "depth", f"is nested too deeply at {position}")
    if reason.startswith("number out of range"):
        return Violation(BODY, "json", f"has a number with too many digits at {position}")
    return Violation(BODY, "json", f"is not valid UTF-8 JSON; see {position}")


def _has_too_many_values(body: bytes) -> bool:
    """Counts commas outside strings in linear time, with a few passes in C."""
    if body.count(b",") < MAX_VALUES:
        return False
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if unescaped.count(b'"') > 4 * MAX_VALUES:  # each value and each key is at most one string
        return True
    return _STRING.sub(b"", unescaped).count(b",") >= MAX_VALUES
