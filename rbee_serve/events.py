"""The events of a request, generic in the output of the worker.

    Event[T] = Started | Output[T] | Progress | Metrics | Narration | End | Error

`rbee_serve.grammar` defines their order. Events are msgspec structs: creating and encoding one costs
under a microsecond, and they can be pickled. Only `to_json` and `from_json` know their JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar, cast

import msgspec

from rbee_serve.errors import WorkerError
from rbee_serve.errors_json import error_from_code
from rbee_serve.outputs import OutputValue, TokenOutput

OutputT = TypeVar("OutputT", bound=OutputValue)


class StopReason(StrEnum):
    """Why a stream ended."""

    MAX_TOKENS = "MAX_TOKENS"
    EOS = "EOS"
    STOP_SEQUENCE = "STOP_SEQUENCE"
    CANCELLED = "CANCELLED"
    ERROR = "ERROR"
    COMPLETE = "COMPLETE"


class _Tagged(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """A struct whose JSON begins with its `type`."""


class Started(_Tagged, frozen=True, kw_only=True, tag="started"):
    """The worker has accepted the request. `started_at` is ISO 8601 in UTC."""

    job_id: str
    model: str
    started_at: str

    @classmethod
    def now(cls, job_id: str, model: str) -> Started:
        """A `started` with the current time."""
        return cls(job_id=job_id, model=model, started_at=datetime.now(UTC).isoformat(timespec="milliseconds"))


class Output(msgspec.Struct, Generic[OutputT], frozen=True):
    """A part of the result. On the wire it is its value: `Output(TokenOutput(t="Hel", i=0))` is
    `{"type":"token","i":0,"t":"Hel"}`."""

    value: OutputT


class Progress(_Tagged, frozen=True, kw_only=True, tag="progress"):
    """`step` of `total` units of work are done. `kind` names the unit where it is not the usual one of the worker."""

    step: int
    total: int
    kind: str | None = None


class Metrics(msgspec.Struct, frozen=True):
    """Numbers about the request, by name; the name ends with the unit (`tokens_per_sec`, `vram_bytes`,
    `time_to_first_token_ms`). On the wire they are fields beside `"type":"metrics"`."""

    values: Mapping[str, float | int]


NOTES = frozenset({"note", "adjust", "truncate", "safety"})
"""The `action` of each narration about what was cut, changed or left out. One result without a stream has these too."""


class Narration(_Tagged, frozen=True, kw_only=True, tag="narration"):
    """A sentence for a person who waits: `actor` does `action` to `target`; `human` is the sentence."""

    actor: str
    action: str
    target: str
    human: str
    cute: str | None = None
    story: str | None = None
    correlation_id: str | None = None
    job_id: str | None = None


class End(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="end"):
    """The stream is complete. `tokens_out` counts the outputs of types without tokens; `decode_time_ms` runs from
    the start of the work to its end."""

    tokens_out: int
    decode_time_ms: int
    stop_reason: StopReason
    stop_sequence_matched: str | None = None
    seed: int | None = None


class Error(_Tagged, frozen=True, kw_only=True, tag="error"):
    """The stream failed."""

    code: str
    message: str
    retriable: bool

    @classmethod
    def from_exception(cls, error: WorkerError) -> Error:
        """The event for an exception."""
        return cls(code=error.code, message=error.message, retriable=error.retriable)

    def to_exception(self) -> WorkerError:
        """The exception for this event."""
        return error_from_code(self.code, self.message)


Event = Started | Output[OutputT] | Progress | Metrics | Narration | End | Error

_FIXED: dict[str, type[Started | Progress | Narration | End | Error]] = {
    "started": Started,
    "progress": Progress,
    "narration": Narration,
    "end": End,
    "error": Error,
}
EVENT_TYPES = frozenset({"metrics", *_FIXED})
"""The `type` of every event that is no output: no output may use one as its tag."""

_encoder = msgspec.json.Encoder()


def to_json(event: Event[Any]) -> bytes:
    """The event as JSON on one line. A non-finite number becomes `null`."""
    if type(event) is Output:
        value: OutputValue = event.value
        return value.to_json()
    if type(event) is Metrics:
        return _encoder.encode({"type": "metrics", **event.values})
    return _encoder.encode(event)


def from_json(data: bytes | str, *output_types: type[OutputValue]) -> Event[Any] | None:
    """The event in `data`, or None if its type is unknown.

    `output_types` are the outputs to expect beside `TokenOutput`. Raises `ValueError` (`msgspec.ValidationError` is a
    subclass) where `data` is no event.
    """
    fields = msgspec.json.decode(data)
    if not isinstance(fields, dict):
        raise ValueError("an event is a JSON object")
    wire_name = fields.get("type")
    if wire_name == "metrics":
        return Metrics({name: number for name, number in fields.items() if name != "type"})
    if fixed := _FIXED.get(cast(str, wire_name)):
        return msgspec.convert(fields, fixed)
    expected: tuple[type[OutputValue], ...] = (TokenOutput, *output_types)
    for output_type in expected:
        if output_type.wire_name() == wire_name:
            return Output(msgspec.convert(fields, output_type))
    return None
