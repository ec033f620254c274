from __future__ import annotations

from datetime import UTC, datetime

import pytest

from benchmarks.load import LoadError, Target
from benchmarks.paced_streams import ChunkedBody, Pace, Piece, lags, timed_events
from rbee_serve.events import End, Event, Output, Started, StopReason, to_json
from rbee_serve.grammar import GrammarError
from rbee_serve.outputs import TokenOutput
from rbee_serve.sse import DONE, KEEP_ALIVE, frame

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
STARTED = Started(job_id="job_1", model="echo", started_at="2026-01-01T00:00:00.000+00:00")
END = End(tokens_out=3, decode_time_ms=1, stop_reason=StopReason.COMPLETE)
WORDS = [Output(TokenOutput(t="a", i=i)) for i in range(3)]


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


def frames(*events: Event[TokenOutput]) -> bytes:
    return chunk(b"".join(frame(to_json(event)) for event in events))


def answer(*words: Output[TokenOutput], end: bool = True) -> list[Piece]:
    """A stream whose word number `i` comes `i` seconds and ten milliseconds after its beginning."""
    pieces = [(BEGAN, HEAD + frames(STARTED))]
    pieces += [(BEGAN + i + 0.01, frames(word)) for i, word in enumerate(words)]
    return [*pieces, (BEGAN + 9, chunk(frame(to_json(END)) + DONE) + chunk(b""))] if end else pieces


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 1000])
def test_chunks_are_decoded_however_the_reads_split_them(size: int) -> None:
    raw = chunk(b"one\r\n") + chunk(b"t" * 300) + chunk(b"")
    body, chunks = b"", ChunkedBody()
    for start in range(0, len(raw), size):
        assert not chunks.complete
        body += chunks.feed(raw[start : start + size])
    assert (body, chunks.complete) == (b"one\r\n" + b"t" * 300, True)


def test_lag_is_counted_from_the_schedule_of_the_stream() -> None:
    late = lags(answer(*WORDS), "a", 3, rate=1.0)
    assert [due - BEGAN for due, _ in late] == pytest.approx([0.0, 1.0, 2.0])
    assert [lag for _, lag in late] == pytest.approx([0.01] * 3)


def test_an_event_arrives_with_its_last_byte() -> None:
    (begin, head), (_, word), *rest = answer(*WORDS)
    torn = [(begin, head), (begin + 0.01, word[:-3]), (begin + 0.2, word[-3:]), *rest]
    assert [lag for _, lag in lags(torn, "a", 3, rate=1.0)] == pytest.approx([0.2, 0.01, 0.01])
    assert len(timed_events(torn)) == 5


def test_events_of_one_read_have_a_lag_each() -> None:
    head, *words, end = answer(*WORDS)
    together = [head, (words[-1][0], b"".join(data for _, data in words)), end]
    assert [lag for _, lag in lags(together, "a", 3, rate=1.0)] == pytest.approx([2.01, 1.01, 0.01])


def test_comments_are_no_events() -> None:
    head, *rest = answer(*WORDS)
    assert len(lags([head, (BEGAN, chunk(KEEP_ALIVE)), *rest], "a", 3, rate=1.0)) == 3


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (answer(WORDS[0], WORDS[2]), "token 2 came where token 1"),
        (answer(WORDS[0], WORDS[1], WORDS[1]), "token 1 came where token 2"),
        (answer(WORDS[1], WORDS[0], WORDS[2]), "token 1 came where token 0"),
        (answer(*WORDS[:2]), "received 2 words"),
        (answer(WORDS[0], Output(TokenOutput(t="b", i=1)), WORDS[2]), "received 3 words, 2 of them its own"),
        (answer(*WORDS, end=False), "the stream has no end"),
        ([*answer(*WORDS, end=False), (BEGAN, chunk(b""))], "the end of the stream"),
        ([(BEGAN, b"HTTP/1.1 503 Service Unavailable\r\n\r\n{}")], "refused: .*503"),
        ([], "refused"),
    ],
)
def test_lost_repeated_mixed_up_or_truncated_events_are_a_fault(pieces: list[Piece], message: str) -> None:
    with pytest.raises((LoadError, GrammarError), match=message):
        lags(pieces, "a", 3, rate=1.0)


def test_each_stream_requests_its_own_words_at_its_share_of_the_rate() -> None:
    pace = Pace(Target(1, "/"), streams=50, events_per_s=100.0, seconds=7.0)
    assert (pace.rate, pace.words) == (2.0, 20)
    assert b'"prompt": "stream-3", "repeat": 20, "tokens_per_sec": 2.0' in pace.request(3)
