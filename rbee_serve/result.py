"""One result instead of a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from rbee_serve.errors import WorkerLost
from rbee_serve.events import NOTES, End, Error, Event, Metrics, Narration, Output, Started
from rbee_serve.outputs import OutputValue

JSON = "application/json"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a request. `output` is the outputs joined by their class (`{"text": …}` for tokens); `outputs` are
    the outputs themselves, for Python users only. `notes` are sentences about what was cut, changed or left out."""

    job_id: str
    model: str
    started_at: str
    output: dict[str, Any]
    metrics: dict[str, float | int]
    end: End
    outputs: tuple[OutputValue, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """The JSON of `"stream": false`: the job, the joined output, the fields of `end`, the notes if there are any,
        and the metrics."""
        end = {name: value for name, value in msgspec.to_builtins(self.end).items() if name != "type"}
        head = {"job_id": self.job_id, "model": self.model, "started_at": self.started_at}
        notes = {"notes": self.notes} if self.notes else {}
        return msgspec.json.encode({**head, **self.output, **end, **notes, "metrics": self.metrics})


@dataclass(frozen=True, slots=True)
class EncodedResult:
    """A result as it is sent: JSON, or a file such as `audio/wav`."""

    data: bytes
    media_type: str = JSON


async def collect(events: AsyncIterator[Event[Any]], output_types: Sequence[type[OutputValue]]) -> Result:
    """Read a stream to its end. Raises the `WorkerError` of an `error` event. Each of `output_types` joins its own
    outputs, the first also where there are none."""
    started: Started | None = None
    values: list[OutputValue] = []
    metrics: dict[str, float | int] = {}
    notes: list[str] = []
    async for event in events:
        match event:
            case Output():
                values.append(event.value)
            case Started():
                started = event
            case Metrics():
                metrics.update(event.values)
            case Narration() if event.action in NOTES:
                notes.append(event.human)
            case Error():
                raise event.to_exception()
            case End() if started is not None:
                return Result(
                    job_id=started.job_id,
                    model=started.model,
                    started_at=started.started_at,
                    output=_joined(values, output_types),
                    metrics=metrics,
                    end=event,
                    outputs=tuple(values),
                    notes=tuple(notes),
                )
    raise WorkerLost("the worker's response ended early; try again")


def _joined(values: Sequence[OutputValue], output_types: Sequence[type[OutputValue]]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for index, output_type in enumerate(output_types):
        own = [value for value in values if type(value) is output_type]
        if own or index == 0:
            joined |= output_type.join(own)
    return joined
