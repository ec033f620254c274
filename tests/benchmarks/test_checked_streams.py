from __future__ import annotations

import pytest

from benchmarks.checked_streams import check, check_begun
from benchmarks.load import LoadError

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
WORDS = [b'data: {"type":"token","t":" so","i":%d}\n\n' % i for i in range(3)]
END = b'data: {"type":"end","tokens_out":3}\n\n'
LAST = b"data: [DONE]\n\n"


def answer(*frames: bytes) -> bytes:
    return HEAD + b"".join(b"%x\r\n%s\r\n" % (len(frame), frame) for frame in frames) + b"0\r\n\r\n"


def test_a_complete_stream_is_accepted() -> None:
    check(answer(*WORDS, END, LAST), 3)


@pytest.mark.parametrize(
    "frames",
    [
        [*WORDS[:2], END, LAST],
        [WORDS[0], WORDS[2], END, LAST],
        [WORDS[0], WORDS[0], WORDS[1], WORDS[2], END, LAST],
        [WORDS[0], WORDS[2], WORDS[1], END, LAST],
        [*WORDS, LAST],
        [*WORDS, END],
        [*WORDS, END, LAST, LAST],
        [*WORDS, LAST, END],
    ],
)
def test_a_stream_with_a_fault_is_rejected(frames: list[bytes]) -> None:
    with pytest.raises(LoadError):
        check(answer(*frames), 3)


def test_a_stream_that_was_closed_early_is_accepted_as_far_as_it_came() -> None:
    assert check_begun(answer(*WORDS)[:-20]) == 2
