from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from benchmarks.load import FrameCounter, LoadError, StreamLoad, Target, parse_wrk, read_streams

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
FRAMES = [b'data: {"i":0}\n\n', b'data: {"i":1}\n\n', b"data: [DONE]\n\n"]
BODY = b"".join(b"%x\r\n%s\r\n" % (len(frame), frame) for frame in FRAMES) + b"0\r\n\r\n"


@contextmanager
def serving(*answers: bytes) -> Iterator[int]:
    """A server that gives these answers, one for each request on its one connection, a few bytes at a time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            connection, _ = listener.accept()
            with connection, suppress(ConnectionError):  # the reader may leave in the middle
                for answer in answers:
                    while b"\r\n\r\n" not in connection.recv(65536):
                        pass
                    for start in range(0, len(answer), 11):
                        connection.sendall(answer[start : start + 11])

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 8, 20, 1000])
def test_frames_are_counted_however_the_reads_split_them(size: int) -> None:
    counter, count = FrameCounter(), 0
    answer = HEAD + BODY
    for start in range(0, len(answer), size):
        assert not counter.complete
        count += counter.feed(answer[start : start + size])
    assert (count, counter.complete) == (3, True)


def test_streams_are_read_to_their_end_on_one_connection() -> None:
    with serving(HEAD + BODY, HEAD + BODY) as port:
        seen = read_streams(StreamLoad(Target(port, "/"), [b"{}", b"{}"], clients=1, first=b'"i":1', keep=True))
    assert (seen.ended, seen.frames, len(seen.first_s)) == (2, 6, 2)
    assert seen.answers == [HEAD + BODY] * 2


def test_a_refused_stream_is_an_error() -> None:
    with (
        serving(b"HTTP/1.1 503 Service Unavailable\r\n\r\n") as port,
        pytest.raises(LoadError, match="503"),
    ):
        read_streams(StreamLoad(Target(port, "/"), [b"{}"], clients=1))


def test_a_stream_that_ends_early_is_an_error() -> None:
    with serving(HEAD + BODY[:30]) as port, pytest.raises(LoadError, match="ended early"):
        read_streams(StreamLoad(Target(port, "/"), [b"{}"], clients=1))


WRK = """\
  Latency Distribution
     50%  {latency}
     75%    2.00s
     90%    2.50s
     99%    3.00s
  1000 requests in 3.00s, 1.00MB read
{more}Requests/sec:    333.25
"""


@pytest.mark.parametrize(("latency", "ms"), [("950.00us", 0.95), ("9.50ms", 9.5), ("1.50s", 1500)])
def test_the_output_of_wrk_is_parsed(latency: str, ms: float) -> None:
    found = parse_wrk(WRK.format(latency=latency, more=""))
    assert (found.count, found.per_s) == (1000, 333.25)
    assert [found.median_ms, found.p99_ms] == pytest.approx([ms, 3000])


@pytest.mark.parametrize("more", ["  Non-2xx or 3xx responses: 5\n", "  Socket errors: connect 0, read 1, write 0\n"])
def test_failed_requests_are_not_counted_as_throughput(more: str) -> None:
    with pytest.raises(LoadError, match="not every request succeeded"):
        parse_wrk(WRK.format(latency="1.00ms", more=more))
