"""The order of events in a stream.

    started, (output | progress | metrics | narration)*, exactly one of (end | error), then the marker

A replica checks every stream with a `StreamGrammar`; tests check whole response bodies with `check_stream`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from rbee_serve.events import End, Error, Event, Metrics, Narration, Output, Progress, Started, from_json
from rbee_serve.outputs import OutputValue
from rbee_serve.sse import MARKER, Decoder

_WITHIN = frozenset({Output, Progress, Metrics, Narration})
_TERMINAL = frozenset({End, Error})

_EXPECTED_FIRST = "started"
_EXPECTED_WITHIN = "output, progress, metrics, narration, end or error"
_EXPECTED_MARKER = "the marker [DONE]"
_EXPECTED_NOTHING = "nothing more"


class GrammarError(Exception):
    """A stream broke the order of events. The message names the event and what was expected."""


class StreamGrammar:
    """Checks one stream, event by event. A `GrammarError` leaves its state unchanged."""

    def __init__(self) -> None:
        self._expected = _EXPECTED_FIRST

    @property
    def started(self) -> bool:
        """Whether `started` was accepted."""
        return self._expected != _EXPECTED_FIRST

    @property
    def terminated(self) -> bool:
        """Whether `end` or `error` was accepted: no event may follow."""
        return self._expected in (_EXPECTED_MARKER, _EXPECTED_NOTHING)

    @property
    def done(self) -> bool:
        """Whether the marker was accepted: the stream is complete."""
        return self._expected == _EXPECTED_NOTHING

    def accept(self, event: Event[Any]) -> None:
        """Accept the next event, or raise `GrammarError`."""
        kind = type(event)
        if self._expected == _EXPECTED_WITHIN:
            if kind in _WITHIN:
                return
            if kind in _TERMINAL:
                self._expected = _EXPECTED_MARKER
                return
        elif self._expected == _EXPECTED_FIRST and kind is Started:
            self._expected = _EXPECTED_WITHIN
            return
        raise self._refusal(kind.__name__)

    def accept_done(self) -> None:
        """Accept the marker, or raise `GrammarError`."""
        if self._expected != _EXPECTED_MARKER:
            raise self._refusal("the marker [DONE]")
        self._expected = _EXPECTED_NOTHING

    def check_done(self) -> None:
        """Raise `GrammarError` unless the stream is complete; call it at the end of the stream."""
        if not self.done:
            raise self._refusal("the end of the stream")

    def _refusal(self, found: str) -> GrammarError:
        return GrammarError(f"{found} came where {self._expected} was expected")


def check_stream(body: bytes, *output_types: type[OutputValue]) -> list[Event[Any]]:
    """The events of a complete response body. Raises `GrammarError` where it breaks a rule of streams.

    Besides the order it checks that each event is JSON on one line, of a known type, and that the `i` of each output
    type counts from 0 without gaps. `output_types` are the outputs to expect beside `TokenOutput`.
    """
    events: list[Event[Any]] = []
    grammar, decoder, counts = StreamGrammar(), Decoder(), Counter[str]()
    for data in decoder.feed(body):
        if data == MARKER:
            grammar.accept_done()
            continue
        event = _parse(data, output_types)
        grammar.accept(event)
        if isinstance(event, Output):
            _check_index(event.value, counts)
        events.append(event)
    if decoder.mid_event:
        raise GrammarError("the stream ended within an event")
    grammar.check_done()
    return events


def _parse(data: bytes, output_types: tuple[type[OutputValue], ...]) -> Event[Any]:
    if b"\n" in data:
        raise GrammarError(f"an event takes more than one line: {_short(data)}")
    try:
        event = from_json(data, *output_types)
    except ValueError as exc:
        raise GrammarError(f"not an event: {_short(data)} ({exc})") from exc
    if event is None:
        raise GrammarError(f"an event of an unknown type: {_short(data)}")
    return event


def _check_index(value: OutputValue, counts: Counter[str]) -> None:
    index = getattr(value, "i", None)
    if index is None:
        return
    name = value.wire_name()
    if index != counts[name]:
        raise GrammarError(f"{name} {index} came where {name} {counts[name]} was expected")
    counts[name] += 1


def _short(data: bytes) -> str:
    return data[:200].decode(errors="replace")
