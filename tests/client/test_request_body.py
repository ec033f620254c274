"""What a client sends for the fields of a request, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import enum
import io
import json
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from rbee_serve.client import AsyncClient, Client, calls, request_body
from rbee_serve.client.request_body import MAX_DEPTH, has_files, json_body
from rbee_serve.errors import InvalidRequest

DATA = b"RIFF\x00\xff sound"
IN_JSON = base64.b64encode(DATA).decode()


def nested(depth: int) -> Any:
    return [] if depth == 1 else [nested(depth - 1)]


def test_bytes_paths_and_open_files_are_one_body(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(DATA)
    with path.open("rb") as buffered, path.open("rb", buffering=0) as raw:
        for file in (DATA, bytearray(DATA), memoryview(DATA), path, buffered, raw, io.BytesIO(DATA)):
            assert json.loads(json_body({"audio": file})) == {"audio": IN_JSON}
    body = {"messages": [{"content": [{"image": path}, {"image": path}]}]}
    assert json.loads(json_body(body)) == {"messages": [{"content": [{"image": IN_JSON}, {"image": IN_JSON}]}]}


def test_an_open_file_is_sent_from_its_position_and_stays_open() -> None:
    file = io.BytesIO(b"head" + DATA)
    file.seek(4)
    assert json.loads(json_body({"audio": file})) == {"audio": IN_JSON}
    assert not file.closed


class Kind(enum.StrEnum):
    A = "a"


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (None, None), (True, True), ("é\u2028🐝", "é\u2028🐝"), (1.5, 1.5), (-(2**63), -(2**63)),
        (2**64 - 1, 2**64 - 1),
        (np.float32(0.5), 0.5), (np.float64(0.5), 0.5), (np.int64(3), 3), (Kind.A, "a"), ((1, 2), [1, 2]),
        ({"a": {"b": ()}}, {"a": {"b": []}}), (nested(MAX_DEPTH), nested(MAX_DEPTH)), ({1: 2}, {"1": 2}),
    ],
)  # fmt: skip
def test_values_of_python_are_those_of_json(value: Any, sent: Any) -> None:
    assert json.loads(json_body({"field": value})) == {"field": sent}


class Async:
    async def read(self, size: int) -> bytes:
        return b""


class Slots:
    __slots__ = ()


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("value", "field", "constraint", "message"),
    [
        ("\ud800", "x", "unicode", "must be valid Unicode without lone surrogates"),
        ([{"content": "a\udfff"}], "x[0].content", "unicode", "must be valid Unicode without lone surrogates"),
        ({"\ud800": 1}, "x", "unicode", "must have names of valid Unicode"),
        (float("nan"), "x", "finite", "must be a finite number"),
        ({"y": [1.0, float("-inf")]}, "x.y[1]", "finite", "must be a finite number"),
        (np.float32("inf"), "x", "finite", "must be a finite number"),
        (2**64, "x", "64 bits", "must be a number of at most 64 bits"),
        (-(2**63) - 1, "x", "64 bits", "must be a number of at most 64 bits"),
        (10**5000, "x", "64 bits", "must be a number of at most 64 bits"),
        (np.zeros(2), "x", "type: JSON", "cannot be sent as a numpy.ndarray; use text, numbers, bytes, files, lists"),
        (Slots(), "x", "type: JSON", "cannot be sent as a tests.client.test_request_body.Slots; use text"),
        (1j, "x", "type: JSON", "cannot be sent as a builtins.complex; use text"),
        (nested(MAX_DEPTH + 1), "x" + "[0]" * MAX_DEPTH, f"depth <= {MAX_DEPTH}", "must have at most 100 levels"),
        (io.StringIO("text"), "x", "file", 'must be a file that is open for blocking reads in the mode "rb"'),
        (Async(), "x", "file", 'must be a file that is open for blocking reads in the mode "rb"'),
        (Path("nothing.wav"), "x", "file", "cannot be read: No such file or directory"),
        (Path(), "x", "file", "cannot be read: Is a directory"),
        (Path("a\0b"), "x", "file", "cannot be read: no file has such a name"),
    ],
    ids=range(18),
)
def test_what_cannot_be_sent_is_refused_by_its_field(value: Any, field: str, constraint: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        json_body({"prompt": "a", "x": value})
    (violation,) = raised.value.violations
    assert (violation.field, violation.constraint) == (field, constraint)
    assert violation.message.startswith(message)


def test_a_list_within_itself_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="must have at most 100 levels"):
        json_body({"x": CIRCLE})
    assert not has_files(CIRCLE)


def test_a_closed_file_and_one_for_writing_are_refused(tmp_path: Path) -> None:
    closed = io.BytesIO(DATA)
    closed.close()
    with (tmp_path / "new").open("wb") as writing:
        for file, reason in ((closed, "it is closed"), (writing, "it is not open for reading")):
            with pytest.raises(InvalidRequest, match=f"audio: cannot be read: {reason}"):
                json_body({"audio": file})


def test_a_file_that_does_not_end_is_refused_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "MAX_FILE_BYTES", 1000)
    for file in (Path("/dev/zero"), io.BytesIO(bytes(1001))):
        with pytest.raises(InvalidRequest, match="audio: must have at most 1000 bytes"):
            json_body({"audio": file})
    json_body({"audio": bytes(1001)})
    json_body({"audio": io.BytesIO(bytes(1000))})


def test_an_object_that_only_looks_sendable_is_refused() -> None:
    class Point(msgspec.Struct):
        x: Any

    assert json.loads(json_body({"p": Point(1)})) == {"p": {"x": 1}}
    with pytest.raises(InvalidRequest):
        json_body({"p": Point("\ud800")})


@pytest.mark.parametrize("worker", ["\ud800", None])
def test_both_clients_raise_before_they_connect(worker: str | None) -> None:
    fields = {"prompt": "a" if worker else "\ud800"}
    field = "worker" if worker else "prompt"

    async def ask(kind: str) -> None:
        client = AsyncClient("http://127.0.0.1:1")
        try:
            if kind == "stream":
                async with client.stream(worker, **fields):
                    pass
            else:
                await getattr(client, kind)(worker, **fields)
        finally:
            await client.close()

    for kind in ("stream", "infer", "infer_file"):
        with Client("http://127.0.0.1:1") as client, pytest.raises(InvalidRequest, match=f"^{field}: must be valid"):  # noqa: PT012
            if kind == "stream":
                with client.stream(worker, **fields):
                    pass
            else:
                getattr(client, kind)(worker, **fields)
        with pytest.raises(InvalidRequest, match=f"^{field}: must be valid"):
            asyncio.run(ask(kind))


def test_the_async_client_reads_files_in_a_thread_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []

    def inference(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread() is not threading.main_thread())
        raise InvalidRequest("enough")

    monkeypatch.setattr(calls, "inference", inference)

    async def ask(**fields: Any) -> None:
        client = AsyncClient("http://127.0.0.1:1")
        with pytest.raises(InvalidRequest, match="enough"):
            await client.infer("a", {"b": [fields.pop("nested", 1)]}, **fields)
        await client.close()

    asyncio.run(ask(audio=Path("x")))
    asyncio.run(ask(audio=io.BytesIO()))
    asyncio.run(ask(nested=Path("x")))
    asyncio.run(ask(audio=DATA, prompt="a"))
    assert threads == [True, True, True, False]
