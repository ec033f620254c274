"""Deployment handles: typed requests, events and results in Python, without HTTP."""

from __future__ import annotations

import pytest

from deployments.echo import EchoRequest
from rbee_serve.errors import InvalidRequest
from rbee_serve.events import End, Output, Started
from rbee_serve.grammar import StreamGrammar
from tests.conftest import Served

pytestmark = pytest.mark.ray


def test_a_handle_streams_typed_events(served: Served) -> None:
    stream = served.handle("echo-0").options(stream=True).stream_events.remote(EchoRequest(prompt="one two"))
    grammar, events = StreamGrammar(), []
    for event in stream:
        grammar.accept(event)
        events.append(event)
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], End)
    assert [event.value.t for event in events if isinstance(event, Output)] == ["one", " two"]


def test_a_handle_returns_a_typed_result(served: Served) -> None:
    result = served.handle("echo-0").collect.remote({"prompt": "one two", "job_id": "job-9"}).result(timeout_s=30)
    assert (result.job_id, result.output, result.end.tokens_out) == ("job-9", {"text": "one two"}, 2)


def test_a_handle_raises_the_same_errors(served: Served) -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        served.handle("echo-0").collect.remote({"prompt": ""}).result(timeout_s=30)
