"""The fields of a request as a JSON body. Files are read, and what no server could read is refused by its field."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import msgspec

from rbee_serve.errors import InvalidRequest

MAX_FILE_BYTES = 512 * 1024 * 1024
"""The largest file that is read. A server accepts 32 MiB for a body unless it is configured for more."""
MAX_DEPTH = 100
"""The deepest nesting of lists and objects."""

_PLAIN = (str, bytes, bytearray, memoryview, bool, int, float, type(None))


def json_body(fields: Mapping[str, Any]) -> bytes:
    """The body. Bytes become base64, a `Path` or an open binary file its content, numbers of other libraries numbers.

    Raises `InvalidRequest` with the field that cannot be sent: text that is no valid Unicode, a number that JSON does
    not have, a file that cannot be read, an object of another kind.
    """
    sendable = {_key(name, ""): _sendable(value, str(name), 0) for name, value in fields.items()}
    try:
        return msgspec.json.encode(sendable)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise InvalidRequest.of_field("body", "type: JSON", "holds an object that cannot be sent as JSON") from exc


def has_files(value: Any, depth: int = 0) -> bool:
    """Whether `json_body` would read a file somewhere in `value`."""
    if isinstance(value, _PLAIN) or depth > MAX_DEPTH:
        return False
    if isinstance(value, Mapping):
        return any(has_files(item, depth + 1) for item in value.values())
    if isinstance(value, list | tuple):
        return any(has_files(item, depth + 1) for item in value)
    return isinstance(value, Path) or hasattr(value, "read")


def _sendable(value: Any, field: str, depth: int) -> Any:
    """`value` as msgspec encodes it."""
    if isinstance(value, _PLAIN) and not isinstance(value, float):
        return _checked(value, field)
    if isinstance(value, Mapping | list | tuple):
        if depth >= MAX_DEPTH:
            raise InvalidRequest.of_field(field, f"depth <= {MAX_DEPTH}", f"must have at most {MAX_DEPTH} levels")
        if isinstance(value, Mapping):
            return {_key(name, field): _sendable(item, f"{field}.{name}", depth + 1) for name, item in value.items()}
        return [_sendable(item, f"{field}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, Path) or hasattr(value, "read"):
        return _content(value, field)
    if isinstance(value, Integral):
        return _checked(int(value), field)
    if isinstance(value, Real):
        if not math.isfinite(value):
            raise InvalidRequest.of_field(field, "finite", "must be a finite number")
        return float(value)
    try:
        return msgspec.to_builtins(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        message = f"cannot be sent as a {kind}; use text, numbers, bytes, files, lists and dicts"
        raise InvalidRequest.of_field(field, "type: JSON", message) from exc


def _checked(value: Any, field: str) -> Any:
    if isinstance(value, str) and not _is_unicode(value):
        raise InvalidRequest.of_field(field, "unicode", "must be valid Unicode without lone surrogates")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise InvalidRequest.of_field(field, "64 bits", "must be a number of at most 64 bits")
    return value


def _key(name: Any, parent: str) -> Any:
    if isinstance(name, str) and not _is_unicode(name):
        raise InvalidRequest.of_field(parent or "body", "unicode", "must have names of valid Unicode")
    return name


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _content(file: Any, field: str) -> bytes:
    try:
        if isinstance(file, Path):
            with file.open("rb") as opened:
                content = opened.read(MAX_FILE_BYTES + 1)
        else:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        reason = exc.strerror or "it is not open for reading"
        raise InvalidRequest.of_field(field, "file", f"cannot be read: {reason}") from exc
    except ValueError as exc:
        reason = "no file has such a name" if isinstance(file, Path) else "it is closed"
        raise InvalidRequest.of_field(field, "file", f"cannot be read: {reason}") from exc
    if inspect.iscoroutine(content):
        content.close()
    if not isinstance(content, bytes | bytearray | memoryview):
        raise InvalidRequest.of_field(field, "file", 'must be a file that is open for blocking reads in the mode "rb"')
    if len(content) > MAX_FILE_BYTES:
        raise InvalidRequest.of_field(field, f"length <= {MAX_FILE_BYTES}", f"must have at most {MAX_FILE_BYTES} bytes")
    return bytes(content)
