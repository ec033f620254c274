"""The order of events: which streams are accepted and which are refused."""

from __future__ import annotations

import itertools
import pickle
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_serve.events import (
    End,
    Error,
    Event,
    Metrics,
    Narration,
    Output,
    Progress,
    Started,
    StopReason,
    to_json,
)
from rbee_serve.grammar import GrammarError, StreamGrammar, check_stream
from rbee_serve.outputs import OutputValue, TokenOutput
from rbee_serve.sse import DONE, KEEP_ALIVE, frame


class PatchOutput(OutputValue, frozen=True, kw_only=True, tag="patch"):
    i: int


STARTED = Started(job_id="job-1", model="m", started_at="2026-01-01T00:00:00.000+00:00")
END = End(tokens_out=1, decode_time_ms=2, stop_reason=StopReason.EOS)
ERROR = Error(code="INTERNAL", message="no", retriable=True)
PROGRESS = Progress(step=1, total=2)
NARRATION = Narration(actor="a", action="b", target="c", human="d")
METRICS = Metrics({"tokens_per_sec": 1.0})


def token(i: int) -> Output[TokenOutput]:
    return Output(TokenOutput(t="x", i=i))


SYMBOLS: dict[str, Event[Any] | None] = {
    "s": STARTED, "o": token(0), "p": PROGRESS, "m": METRICS, "n": NARRATION, "e": END, "r": ERROR, "D": None,
}  # fmt: skip
"""Each kind of event by a letter; D is the marker."""


def run(word: str) -> None:
    grammar = StreamGrammar()
    for letter in word:
        event = SYMBOLS[letter]
        if event is None:
            grammar.accept_done()
        else:
            grammar.accept(event)
    grammar.check_done()


def is_accepted(word: str) -> bool:
    try:
        run(word)
    except GrammarError:
        return False
    return True


def test_every_short_stream_is_accepted_exactly_if_it_follows_the_rule() -> None:
    rule = re.compile("s[opmn]*[er]D")
    for length in range(5):
        for symbols in itertools.product(SYMBOLS, repeat=length):
            word = "".join(symbols)
            assert is_accepted(word) is bool(rule.fullmatch(word)), word


@given(st.text(alphabet="opmn", max_size=30), st.sampled_from("er"))
def test_events_in_the_middle_may_have_any_order(middle: str, last: str) -> None:
    assert is_accepted(f"s{middle}{last}D")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("o", "Output came where started was expected"),
        ("ss", "Started came where output, progress, metrics, narration, end or error was expected"),
        ("ser", "Error came where the marker [DONE] was expected"),
        ("sD", "the marker [DONE] came where output, progress, metrics, narration, end or error was expected"),
        ("seDD", "the marker [DONE] came where nothing more was expected"),
        ("so", "the end of the stream came where output, progress, metrics, narration, end or error was expected"),
    ],
)
def test_a_refusal_names_the_event_and_what_was_expected(word: str, message: str) -> None:
    with pytest.raises(GrammarError) as caught:
        run(word)
    assert str(caught.value) == message


def test_an_object_that_is_no_event_is_refused() -> None:
    grammar = StreamGrammar()
    grammar.accept(STARTED)
    with pytest.raises(GrammarError, match="str came"):
        grammar.accept("token")  # type: ignore[arg-type]


def test_a_refusal_leaves_the_state_unchanged() -> None:
    grammar = StreamGrammar()
    with pytest.raises(GrammarError):
        grammar.accept(END)
    grammar.accept(STARTED)
    assert (grammar.started, grammar.terminated, grammar.done) == (True, False, False)
    grammar.accept(ERROR)
    assert (grammar.started, grammar.terminated, grammar.done) == (True, True, False)
    grammar.accept_done()
    assert (grammar.started, grammar.terminated, grammar.done) == (True, True, True)


def test_a_grammar_error_can_be_pickled() -> None:
    assert not issubclass(GrammarError, AssertionError)
    assert str(pickle.loads(pickle.dumps(GrammarError("x")))) == "x"


def body_of(*events: Event[Any]) -> bytes:
    return b"".join(frame(to_json(event)) for event in events) + DONE


def test_a_complete_body_decodes_to_its_events() -> None:
    events: list[Event[Any]] = [STARTED, NARRATION, token(0), PROGRESS, token(1), METRICS, END]
    assert check_stream(KEEP_ALIVE + body_of(*events)) == events


def test_each_output_type_has_its_own_indices() -> None:
    events: list[Event[Any]] = [STARTED, token(0), Output(PatchOutput(i=0)), token(1), Output(PatchOutput(i=1)), END]
    assert check_stream(body_of(*events), PatchOutput) == events


GOOD = body_of(STARTED, token(0), END)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the end of the stream came where started"),
        (body_of(STARTED, token(1), END), "token 1 came where token 0 was expected"),
        (body_of(STARTED, token(0), token(0), END), "token 0 came where token 1 was expected"),
        (body_of(STARTED, token(0), token(2), END), "token 2 came where token 1 was expected"),
        (body_of(STARTED, Output(PatchOutput(i=0)), END), "an event of an unknown type"),
        (GOOD + frame(to_json(PROGRESS)), "Progress came where nothing more was expected"),
        (GOOD + b"data: x", "ended within an event"),
        (GOOD.removesuffix(DONE), "the end of the stream came where the marker"),
        (frame(b'{"type":'), "not an event"),
        (frame(b"[]"), "not an event"),
        (frame(b'{"type":"started"}'), "not an event"),
        (b'data: {"type":\ndata: "started"}\n\n', "more than one line"),
    ],
)
def test_a_body_that_breaks_a_rule_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(message)):
        check_stream(body)
