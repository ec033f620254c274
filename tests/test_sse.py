"""Server-sent events: frames out, events in, for any chunk boundaries."""

from __future__ import annotations

import itertools
import re
import sys

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_serve.events import Output, from_json, to_json
from rbee_serve.outputs import TokenOutput
from rbee_serve.sse import DONE, KEEP_ALIVE, MARKER, Decoder, EventTooLarge, frame


def decode(*chunks: bytes) -> list[bytes]:
    decoder = Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def cut(body: bytes, boundaries: list[int]) -> list[bytes]:
    """`body` in chunks, some of them empty."""
    positions = [0, *sorted(boundary % (len(body) + 1) for boundary in boundaries), len(body)]
    return [body[start:stop] for start, stop in itertools.pairwise(positions)]


def test_a_frame_is_one_data_line_and_a_blank_line() -> None:
    assert frame(b'{"a":1}') == b'data: {"a":1}\n\n'
    assert DONE == b"data: [DONE]\n\n"
    assert KEEP_ALIVE == b": keep-alive\n\n"


@given(st.text(), st.lists(st.integers(0, 10**6), max_size=8))
def test_no_text_of_a_model_breaks_a_frame(text: str, boundaries: list[int]) -> None:
    event = Output(TokenOutput(t=text, i=0))
    body = frame(to_json(event)) + DONE
    data, marker = decode(*cut(body, boundaries))
    assert (from_json(data), marker) == (event, MARKER)


SPLITTERS = [chr(code) for code in range(sys.maxunicode + 1) if len(f"a{chr(code)}b".splitlines()) > 1]


@pytest.mark.parametrize(
    "text", ["one\u2028two", "\u2029", "\x85\x85", "\\\u2028", "“quoted” — é\u2028\x85", *SPLITTERS]
)
def test_a_reader_that_splits_lines_as_python_does_gets_each_event_whole(text: str) -> None:
    event = Output(TokenOutput(t=text, i=0))
    body = frame(to_json(event)) + DONE
    lines = [line for line in httpx.Response(200, content=body).iter_lines() if line]
    assert lines == body.decode().splitlines()[::2]
    assert [line.removeprefix("data: ") for line in lines][1:] == ["[DONE]"]
    assert from_json(lines[0].removeprefix("data: ").encode()) == event


def test_every_character_that_python_splits_at_is_covered() -> None:
    assert [hex(ord(character)) for character in SPLITTERS] == [
        "0xa", "0xb", "0xc", "0xd", "0x1c", "0x1d", "0x1e", "0x85", "0x2028", "0x2029",
    ]  # fmt: skip


@given(st.text(st.sampled_from('aé“”\xa0\x85\u2027\u2028\u2029\u202a你\\"\n\U0001f41d')))
def test_only_line_ends_are_escaped(text: str) -> None:
    json = to_json(Output(TokenOutput(t=text, i=0)))
    expected = json.decode()
    for character in "\x85\u2028\u2029":
        expected = expected.replace(character, f"\\u{ord(character):04x}")
    assert frame(json) == f"data: {expected}\n\n".encode()


@given(
    st.lists(
        st.sampled_from([b"data: a", b"data:b", b"data", b"data:  ", b": c", b"id: 1", b"", "data: é🐝".encode()])
    ),
    st.sampled_from([b"\n", b"\r", b"\r\n"]),
    st.lists(st.integers(0, 10**6), max_size=12),
)
def test_chunk_boundaries_do_not_matter(lines: list[bytes], line_end: bytes, boundaries: list[int]) -> None:
    body = line_end.join([*lines, b"", b""])
    expected = decode(*[bytes([byte]) for byte in body])
    assert decode(*cut(body, boundaries)) == expected
    assert decode(body) == expected
    # The rule of the specification, implemented in another way.
    blocks = [re.findall(rb"^data(?:: ?|$)(.*)$", block, re.M) for block in b"\n".join(lines).split(b"\n\n")]
    if b"" not in lines:
        assert expected == [b"\n".join(block) for block in blocks if block]


@pytest.mark.parametrize(
    ("body", "events"),
    [
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data:a\r\n\r\ndata: b\r\rdata: c\n\n", [b"a", b"b", b"c"]),
        (b"data\n\ndata\ndata\n\ndata:", [b"", b"\n"]),
        (b"event: x\nid: 1\nretry: 5\ndata: a\nnonsense\n\n", [b"a"]),
        (b": keep-alive\n\n: keep-alive\n\ndata: a\n\n", [b"a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"data:   two spaces stay\n\n", [b"  two spaces stay"]),
        (b"data: cut off", []),
        (b"data: no blank line\n", []),
        (b"database: x\n\n", []),
        (b"", []),
    ],
)
def test_the_decoder_reads_everything_that_the_specification_allows(body: bytes, events: list[bytes]) -> None:
    assert decode(body) == events
    assert decode(*[bytes([byte]) for byte in body]) == events


def test_an_event_is_returned_as_soon_as_its_line_ends() -> None:
    decoder = Decoder()
    assert list(decoder.feed(b"data: a\r\n\r")) == [b"a"]
    assert list(decoder.feed(b"\ndata: b\n\n")) == [b"b"]


def test_the_decoder_knows_whether_the_stream_ends_within_an_event() -> None:
    decoder = Decoder()
    for chunk, within in [(b"", False), (b"da", True), (b"ta: a\n", True), (b"\n", False), (b": c", True)]:
        list(decoder.feed(chunk))
        assert decoder.mid_event is within


@pytest.mark.parametrize("body", [b"data: " + b"x" * 100, b"data: xxx\n" * 20, b":" * 101 + b"\n", b"x" * 101])
def test_an_event_over_the_limit_is_refused(body: bytes) -> None:
    with pytest.raises(EventTooLarge):
        list(Decoder(max_event_bytes=100).feed(body))


def test_the_limit_is_for_each_event_and_not_for_the_stream() -> None:
    assert len(list(Decoder(max_event_bytes=100).feed(frame(b"x" * 90) * 50))) == 50


def test_events_before_one_that_is_too_large_are_returned() -> None:
    events = Decoder(max_event_bytes=100).feed(frame(b"a") + b"data: " + b"x" * 200)
    assert next(events) == b"a"
    with pytest.raises(EventTooLarge):
        next(events)


def test_events_that_were_not_read_are_returned_with_the_next_chunk() -> None:
    decoder = Decoder()
    assert next(decoder.feed(frame(b"a") + frame(b"b"))) == b"a"
    assert list(decoder.feed(frame(b"c"))) == [b"b", b"c"]
