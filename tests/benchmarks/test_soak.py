"""The soak's parts without a server of ours: its requests, its judgement of responses, its orchestrator."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from contextlib import suppress

import httpx
import pytest

from benchmarks.soak.checks import judge
from benchmarks.soak.faults import Fault
from benchmarks.soak.hive import Hive
from benchmarks.soak.http import Conduct, Response, exchange
from benchmarks.soak.load import Record
from benchmarks.soak.memory import Reading, Windows, growths
from benchmarks.soak.report import Result
from benchmarks.soak.samples import FIELDS, Sample, bad, good, quick
from benchmarks.soak.server import Leftovers
from deployments.registry import WORKER_TYPES
from rbee_serve.events import End, Error, Output, Started, StopReason, to_json
from rbee_serve.outputs import TokenOutput
from rbee_serve.sse import DONE, frame
from rbee_serve.worker.registry import load_spec

GOOD = Sample("echo-0", "stream", b"", "hello")
BAD = Sample("echo-0", "bad", b"", statuses=frozenset({400}))
STARTED = frame(to_json(Started(job_id="1", model="echo", started_at="2026-01-01T00:00:00Z")))
HELLO = frame(to_json(Output(TokenOutput(t="hello", i=0))))
END = frame(to_json(End(tokens_out=1, decode_time_ms=1, stop_reason=StopReason.COMPLETE)))
LOST = frame(to_json(Error(code="WORKER_LOST", message="it died", retriable=True)))
INTERNAL = frame(to_json(Error(code="INTERNAL", message="see the log", retriable=True)))


def stream(*frames: bytes, complete: bool = True) -> Response:
    return Response(200, {"content-type": "text/event-stream"}, bytearray(b"".join(frames)), complete)


def refusal(status: int, code: str, retriable: bool, **headers: str) -> Response:
    body = json.dumps({"code": code, "message": "no", "retriable": retriable}).encode()
    return Response(status, {"content-type": "application/json", **headers}, bytearray(body), True)


@pytest.mark.parametrize(
    ("sample", "response", "disturbed"),
    [
        (GOOD, stream(STARTED, HELLO, END, DONE), False),
        (GOOD, stream(STARTED, HELLO, LOST, DONE), True),
        (GOOD, refusal(503, "WORKER_LOST", True, **{"retry-after": "1"}), True),
        (GOOD, refusal(503, "INSUFFICIENT_RESOURCES", True, **{"retry-after": "1"}), False),
        (BAD, refusal(400, "INVALID_REQUEST", False), False),
    ],
)
def test_what_a_client_may_receive_is_no_fault(sample: Sample, response: Response, disturbed: bool) -> None:
    assert judge(sample, Conduct(), response, disturbed, False, ()).fault is None


@pytest.mark.parametrize(
    ("sample", "response", "disturbed", "grammar"),
    [
        (GOOD, stream(STARTED, HELLO, END), False, True),
        (GOOD, stream(STARTED, HELLO, DONE), False, True),
        (GOOD, stream(STARTED, HELLO, END, END, DONE), False, True),
        (GOOD, stream(STARTED, END, DONE), False, False),
        (GOOD, stream(STARTED, HELLO, LOST, DONE), False, False),
        (GOOD, stream(STARTED, HELLO, INTERNAL, DONE), True, False),
        (GOOD, stream(STARTED, HELLO, complete=False), True, False),
        (GOOD, refusal(503, "WORKER_UNHEALTHY", False), True, False),
        (GOOD, refusal(503, "WORKER_LOST", True), True, False),
        (GOOD, refusal(500, "INTERNAL", True), True, False),
        (GOOD, refusal(400, "INVALID_REQUEST", False), False, False),
        (GOOD, Response(timed_out=True), True, False),
        (GOOD, Response(error="EOFError"), True, False),
        (BAD, stream(STARTED, HELLO, END, DONE), False, False),
        (BAD, refusal(500, "INTERNAL", True), True, False),
    ],
)
def test_everything_else_is_a_fault(sample: Sample, response: Response, disturbed: bool, grammar: bool) -> None:
    outcome = judge(sample, Conduct(), response, disturbed, False, ())
    assert outcome.fault is not None
    assert outcome.grammar is grammar


def test_an_error_with_internals_is_a_fault_even_where_an_error_is_expected() -> None:
    response = refusal(400, "INVALID_REQUEST", False)
    response.body = response.body.replace(b"no", b"<object at 0x7f00deadbeef>")
    assert judge(BAD, Conduct(), response, False, False, ()).fault is not None


def test_only_a_killed_ingress_excuses_a_cut_stream() -> None:
    response = stream(STARTED, HELLO, complete=False)
    assert judge(GOOD, Conduct(), response, True, True, ()).fault is None


def test_what_came_before_a_client_left_must_be_the_beginning_of_a_stream() -> None:
    leaves = Conduct("leaves", leave_after_bytes=1)
    assert judge(GOOD, leaves, stream(STARTED, HELLO[:-9], complete=False), False, False, ()).fault is None
    assert judge(GOOD, leaves, stream(HELLO, complete=False), False, False, ()).grammar


@pytest.mark.parametrize("kind", FIELDS)
def test_good_requests_are_valid_for_their_worker_type(kind: str) -> None:
    request_type = load_spec(WORKER_TYPES[kind]).request
    rng = random.Random(3)
    for sample in [quick(1, "worker", kind), *(good(rng, 1, "worker", kind) for _ in range(30))]:
        head, _, body = sample.request.partition(b"\r\n\r\n")
        assert b"Content-Length: %d\r\n" % len(body) in head
        fields = json.loads(body)
        for name in fields.keys() & {"image", "audio"}:
            fields[name] = fields[name].encode()
        request_type.model_validate(fields)


@pytest.mark.parametrize("kind", FIELDS)
def test_bad_requests_of_every_kind_are_made_and_the_same_seed_makes_the_same(kind: str) -> None:
    first, second = ([bad(rng, 1, "w", kind) for _ in range(150)] for rng in (random.Random(4), random.Random(4)))
    assert [sample.request for sample in first] == [sample.request for sample in second]
    assert len({sample.kind for sample in first}) >= 16
    assert all(sample.kind == "bad: mutation" or not sample.is_good for sample in first)


async def answered(respond: Callable[[asyncio.StreamWriter], None], conduct: Conduct) -> tuple[Response, bytes]:
    """The response of a server to `hello`, read as `conduct` says, and what the server has read."""
    seen = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            seen.extend(await reader.readexactly(5))
            respond(writer)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        response = await exchange(server.sockets[0].getsockname()[1], b"hello", 5, conduct)
        await asyncio.sleep(0.05)
    return response, bytes(seen)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n"


async def test_a_response_is_complete_only_with_its_last_chunk() -> None:
    whole, _ = await answered(lambda writer: writer.write(CHUNKED + b"0\r\n\r\n"), Conduct(slow_reader=True, pieces=3))
    assert (whole.status, bytes(whole.body), whole.complete) == (200, b"abcdefg", True)
    broken, _ = await answered(lambda writer: writer.write(CHUNKED), Conduct())
    assert (bytes(broken.body), broken.complete) == (b"abcdefg", False)


async def test_a_response_is_complete_only_with_its_length() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    whole, _ = await answered(lambda writer: writer.write(head + b"12345"), Conduct())
    broken, _ = await answered(lambda writer: writer.write(head + b"1234"), Conduct())
    assert (whole.complete, broken.complete) == (True, False)


async def test_clients_leave_where_they_should() -> None:
    early, seen = await answered(lambda writer: None, Conduct(send_bytes=3))
    assert (early.status, seen) == (0, b"")
    within, _ = await answered(lambda writer: writer.write(CHUNKED + b"0\r\n\r\n"), Conduct(leave_after_bytes=3))
    assert (bytes(within.body), within.complete) == (b"abc", False)


def reading(minute: float, rss_mb: float, pid: int = 1) -> Reading:
    return Reading(minute, pid, "ingress", rss_mb, rss_mb, rss_mb, 10, 5)


def test_the_last_five_minutes_are_compared_with_minutes_10_to_15() -> None:
    windows = Windows.of(30)
    series = [reading(minute, 100 if minute < 20 else 108.5) for minute in range(31)]
    replaced = [reading(minute, 50, pid=2) for minute in range(20, 31)]
    [growth] = growths([*series, *replaced], windows)
    assert (growth.pid, round(growth.mb, 1)) == (1, 8.5)
    assert Windows.of(3) == Windows((1.0, 1.5), (2.5, 3.0))


def result(**changes: object) -> Result:
    arguments = {
        "record": Record(),
        "injected": [],
        "problems": [],
        "modes": {},
        "messages": 0,
        "growths": [],
        "windows": Windows.of(30),
        "leftovers": Leftovers(),
        "stop": (0, 5.0),
        "temp_files": [3],
    }
    return Result(**(arguments | changes))  # type: ignore[arg-type]


def test_growth_leftovers_and_a_bad_stop_fail_a_soak() -> None:
    grown = growths([reading(12, 100), reading(28, 110)], Windows.of(30))
    assert not result().failures
    assert str(result()).endswith("passed")
    assert result(growths=grown).failures == ["ingress (process 1) has grown by 10.0 MB"]
    assert not result(growths=grown, injected=[Fault("stop echo", "echo-0", 0.0, 1.0, {1})]).failures
    assert result(leftovers=Leftovers(["socket"], ["psm_1"])).failures == [
        "1 left in the temporary folder: socket",
        "1 left in /dev/shm: psm_1",
    ]
    assert result(stop=(1, 3.0)).failures
    assert result(problems=["a"]).failures == ["a"]


async def test_the_orchestrator_misbehaves_and_comes_back() -> None:
    hive = Hive()
    body = {"worker_id": "echo-0", "timestamp": "2026-01-01T00:00:00Z", "health_status": "healthy"}
    async with hive.running(), httpx.AsyncClient() as client:

        async def status() -> int:
            for _ in range(50):
                with suppress(httpx.TransportError):
                    return (await client.post(f"{hive.url}/v1/heartbeat", json=body)).status_code
                await asyncio.sleep(0.1)
            return 0

        assert await status() == 404
        hive.mode = "refuse"
        assert await status() == 503
        hive.mode = "redirect"
        assert await status() == 307
        hive.mode = "down"
        await asyncio.sleep(0.5)
        with pytest.raises(httpx.TransportError):
            await client.post(f"{hive.url}/v1/heartbeat", json=body)
        hive.mode = "good"
        assert await status() == 404
    assert hive.messages() == 4
    assert hive.faults() == []
