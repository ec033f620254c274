"""A text stream merged with derived outputs, with fake helper workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import pytest

from deployments.multimodal.derived_outputs import drawn, spoken
from rbee_serve.errors import InvalidRequest, WorkerLost
from rbee_serve.events import End, Error, Event, Metrics, Narration, Output, Progress, Started, StopReason
from rbee_serve.outputs import AudioChunkOutput, ImageOutput, TokenOutput
from rbee_serve.worker.composition import DerivedOutput, composed

TEXT = "This is a seven. It comes after six. Good."
NARRATION = Narration(actor="a", action="b", target="c", human="d")
END = End(tokens_out=1, decode_time_ms=1, stop_reason=StopReason.EOS)


async def text_stream(text: str = TEXT, pause_s: float = 0.0) -> AsyncGenerator[Event[TokenOutput], None]:
    yield NARRATION
    for i, word in enumerate(text.split(" ")):
        await asyncio.sleep(pause_s)
        yield Output(TokenOutput(t=word if i == 0 else f" {word}", i=i))
    yield Metrics({"tokens_out": 1})
    yield END


class Worker:
    """A fake worker: records its requests, and yields these events and then its end."""

    def __init__(self, events: Sequence[Event[Any]], pause_s: float = 0.0) -> None:
        self.events = events
        self.pause_s = pause_s
        self.requests: list[dict[str, Any]] = []
        self.cancelled = 0

    async def __call__(self, fields: dict[str, Any]) -> AsyncGenerator[Event[Any], None]:
        self.requests.append(fields)
        complete = False
        try:
            yield Started(job_id="job", model="m", started_at="now")
            for event in self.events:
                await asyncio.sleep(self.pause_s)
                yield event
            complete = True
            yield END
        finally:
            self.cancelled += not complete


def voice(pause_s: float = 0.0) -> Worker:
    chunks = [Output(AudioChunkOutput(samples=b"\0" * 8, sample_rate=24_000, i=i)) for i in (0, 1)]
    return Worker([NARRATION, *chunks, Progress(step=1, total=1), Metrics({"x": 1})], pause_s)


def painter() -> Worker:
    preview = Output(ImageOutput(patch=b"small", format="png", preview=True, step=1, i=0))
    return Worker([Progress(step=1, total=2), preview, Output(ImageOutput(patch=b"image", format="png", i=1))])


async def events_of(*derived: DerivedOutput, text: str = TEXT, pause_s: float = 0.0) -> list[Event[Any]]:
    async with aclosing(composed(text_stream(text, pause_s), derived)) as events:
        return [event async for event in events]


def outputs(events: list[Event[Any]], kind: type) -> list[Any]:
    return [event.value for event in events if isinstance(event, Output) and isinstance(event.value, kind)]


async def test_the_text_is_spoken_sentence_by_sentence_while_it_is_generated() -> None:
    other = voice()
    events = await events_of(spoken(other, {"speed": 1.5}), pause_s=0.02)
    assert [fields["prompt"] for fields in other.requests] == ["This is a seven. ", "It comes after six. ", "Good."]
    assert all(fields["speed"] == 1.5 for fields in other.requests)
    assert "".join(token.t for token in outputs(events, TokenOutput)) == TEXT
    assert [chunk.i for chunk in outputs(events, AudioChunkOutput)] == [0, 1, 2, 3, 4, 5]
    kinds = [event.value.wire_name() for event in events if isinstance(event, Output)]
    assert kinds.index("audio") < len(kinds) - 1 - kinds[::-1].index("token")
    assert events[-1] is END
    assert events.count(END) == 1


async def test_the_end_follows_the_last_spoken_sentence() -> None:
    events = await events_of(spoken(voice(0.05), {}))
    assert isinstance(events[-1], End)
    assert len(outputs(events, AudioChunkOutput)) == 6


async def test_an_image_is_generated_from_the_whole_text() -> None:
    other = painter()
    events = await events_of(drawn(other, {"steps": 4}))
    assert other.requests == [{"steps": 4, "prompt": TEXT.rstrip(".")}]
    assert [image.preview for image in outputs(events, ImageOutput)] == [True, False]
    assert [event.kind for event in events if isinstance(event, Progress)] == ["steps"]


async def test_an_image_may_have_a_prompt_of_its_own() -> None:
    other = painter()
    await events_of(drawn(other, {"prompt": "an eight"}))
    assert other.requests == [{"prompt": "an eight"}]


async def test_a_text_that_is_cut_for_an_image_is_narrated() -> None:
    other = painter()
    events = await events_of(drawn(other, {}), text="ab" * 5000)
    assert other.requests == [{"prompt": "ab" * 4096}]
    [narration] = [event for event in events if isinstance(event, Narration) and event.target == "image"]
    assert narration.human == "The image is of the first 8192 of 10000 characters of the text"


async def test_a_text_without_a_visible_character_becomes_no_image() -> None:
    other = painter()
    assert (await events_of(drawn(other, {}), text=" \u200b\n"))[-1] is END
    assert other.requests == []


async def test_a_text_without_words_is_not_spoken() -> None:
    speaker, artist = voice(), painter()
    events = await events_of(spoken(speaker, {}), drawn(artist, {}), text="... \n !!!")
    assert speaker.requests == []
    assert artist.requests == [{"prompt": "... \n !!!"}]
    assert events[-1] is END


async def test_an_error_of_a_helper_worker_ends_the_stream() -> None:
    other = Worker([Error(code="WORKER_LOST", message="the voice died", retriable=True)])
    with pytest.raises(WorkerLost, match="the voice died"):
        await events_of(spoken(other, {}), pause_s=0.01)


NOTE = Narration(actor="a", action="note", target="c", human="1 sample was louder than full scale and is clipped")
UNSPEAKABLE = InvalidRequest.of_field("prompt", "speakable", "holds nothing that this voice can speak")


@pytest.mark.parametrize("is_event", [True, False], ids=["after the start", "before the start"])
async def test_a_sentence_that_the_voice_cannot_speak_is_left_out_with_a_note(is_event: bool) -> None:
    able = voice()

    async def other(fields: dict[str, Any]) -> AsyncGenerator[Event[Any], None]:
        if "six" not in fields["prompt"]:
            async for event in able(fields):
                yield event
        elif not is_event:
            raise UNSPEAKABLE
        else:
            yield NARRATION
            yield Error.from_exception(UNSPEAKABLE)

    events = await events_of(spoken(other, {}))
    assert [chunk.i for chunk in outputs(events, AudioChunkOutput)] == [0, 1, 2, 3]
    [note] = [event for event in events if isinstance(event, Narration) and event.action == "note"]
    assert note.human == "Sentence 2 is not spoken: it holds nothing that this voice can speak"
    assert events[-1] is END


@pytest.mark.parametrize("is_event", [True, False], ids=["after the start", "before the start"])
async def test_an_option_that_the_voice_refuses_ends_the_stream(is_event: bool) -> None:
    async def other(fields: dict[str, Any]) -> AsyncGenerator[Event[Any], None]:
        error = InvalidRequest.of_field("voice", "one of: a", "unknown voice; known are a")
        if not is_event:
            raise error
        yield Error.from_exception(error)

    with pytest.raises(InvalidRequest, match="unknown voice"):
        await events_of(spoken(other, {"voice": "b"}), pause_s=0.01)


async def test_a_note_of_the_voice_is_passed_on_once() -> None:
    other = voice()
    other.events = [*other.events, NOTE]
    assert (await events_of(spoken(other, {}))).count(NOTE) == 1


async def test_a_sentence_of_invisible_letters_is_not_sent_to_the_voice() -> None:
    other = voice()
    await events_of(spoken(other, {}), text="\u3164\u115f\u1160\u3164 ...")
    assert other.requests == []


async def test_a_refusal_of_the_text_starts_no_derived_output() -> None:
    async def refused() -> AsyncGenerator[Event[TokenOutput], None]:
        raise InvalidRequest.of_field("prompt", "x", "y")
        yield NARRATION

    other = voice()
    with pytest.raises(InvalidRequest):
        await anext(composed(refused(), [spoken(other, {})]))
    assert other.requests == []


async def test_closing_the_stream_closes_the_text_and_its_derived_outputs() -> None:
    speaker, closed = voice(10), []

    async def endless() -> AsyncGenerator[Event[TokenOutput], None]:
        try:
            yield NARRATION
            for i in range(10**6):
                await asyncio.sleep(0.001)
                yield Output(TokenOutput(t="A sentence comes. ", i=i))
        finally:
            closed.append("text")

    before = asyncio.all_tasks()
    stream = composed(endless(), [spoken(speaker, {})])
    for _ in range(20):
        await anext(stream)
    await stream.aclose()
    assert closed == ["text"]
    assert speaker.cancelled == 1
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("read", [1, 2])
async def test_closing_the_stream_does_not_wait_for_blocked_sources(read: int) -> None:
    closed: list[str] = []

    async def long_text() -> AsyncGenerator[Event[TokenOutput], None]:
        try:
            yield NARRATION
            for i in range(5000):
                yield Output(TokenOutput(t="x", i=i))
        finally:
            closed.append("text")

    async def fails(text: AsyncIterator[str]) -> AsyncGenerator[Event[Any], None]:
        yield NARRATION
        raise WorkerLost("gone")

    stream = composed(long_text(), [fails])
    for _ in range(read):
        await anext(stream)
    await asyncio.sleep(0.05)
    await asyncio.wait_for(stream.aclose(), 2)
    assert closed == ["text"]


async def test_a_slow_reader_slows_the_text_down() -> None:
    made = 0

    async def long_text() -> AsyncGenerator[Event[TokenOutput], None]:
        nonlocal made
        yield NARRATION
        for made in range(5000):
            yield Output(TokenOutput(t="x", i=made))
        yield END

    async def reads(text: AsyncIterator[str]) -> AsyncGenerator[Event[Any], None]:
        async for _ in text:
            pass
        yield NARRATION

    stream = composed(long_text(), [reads])
    await anext(stream)
    await asyncio.sleep(0.1)
    assert made < 1000
    assert len([event async for event in stream]) == 5002
