"""Requests with files: forms, and bodies that are one file."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from rbee_serve.config import WorkerConfig
from rbee_serve.errors import InvalidRequest, UnsupportedMediaType, WorkerError
from rbee_serve.ingress.addressing import resolve_request
from rbee_serve.ingress.services import IngressServices, Worker
from rbee_serve.request import InferenceRequest
from tests.ingress.application import services_of
from tests.outside_worker import SPEC, LetterRequest

BOOK = b"abracadabra \x00\r\n--x"


def services() -> IngressServices:
    worker = Worker(WorkerConfig(id="letters", type="tests.outside_worker:SPEC"), SPEC, LetterRequest)
    return services_of({"letters": worker}, "letters")


async def read(request: httpx.Request, *, at_worker: bool = True) -> InferenceRequest:
    """The request that the ingress reads from a request of httpx."""
    body = request.read()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "query_string": request.url.query,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "path_params": {"worker_id": "letters"} if at_worker else {},
    }
    worker, found = await resolve_request(Request(scope, receive), services())
    assert worker.config.id == "letters"
    return found


def form(files: Any = None, **data: Any) -> httpx.Request:
    return httpx.Request("POST", "http://x/", files=files or {"book": ("b.txt", BOOK)}, data=data)


def file_body(content: bytes = BOOK, kind: str = "book/plain", **query: Any) -> httpx.Request:
    return httpx.Request("POST", "http://x/", content=content, headers={"content-type": kind}, params=query)


async def test_json_carries_a_file_as_base64() -> None:
    encoded = base64.b64encode(BOOK).decode()
    for text in (encoded, f"data:text/plain;base64,{encoded}"):
        assert (await read(httpx.Request("POST", "http://x/", json={"book": text}))).model_dump()["book"] == BOOK


def test_a_request_with_a_file_can_be_written_as_json() -> None:
    request = LetterRequest(book=BOOK)
    assert LetterRequest.model_validate_json(request.model_dump_json(exclude_unset=True)) == request
    assert request.model_dump(exclude_unset=True) == {"book": BOOK}
    assert LetterRequest(text="a").model_dump(mode="json")["book"] is None


@pytest.mark.parametrize("request_", [form(), file_body(), file_body(kind="application/octet-stream")])
async def test_a_file_arrives_unchanged(request_: httpx.Request) -> None:
    assert (await read(request_)).model_dump()["book"] == BOOK


@pytest.mark.parametrize(
    "request_",
    [form(alphabet="12", at_least="3", as_table="true"), file_body(alphabet=12, at_least=3, as_table="true")],
)
async def test_texts_become_the_types_of_their_fields(request_: httpx.Request) -> None:
    found = (await read(request_)).model_dump(exclude_unset=True)
    assert found == {"book": BOOK, "alphabet": "12", "at_least": 3, "as_table": True}


@pytest.mark.parametrize(
    "request_", [form(worker="letters"), form(model="tests.outside_worker:SPEC"), file_body(worker="letters")]
)
async def test_at_the_root_the_worker_is_named_by_a_field_or_the_query(request_: httpx.Request) -> None:
    assert (await read(request_, at_worker=False)).model_dump(exclude_unset=True) == {"book": BOOK}


def truncated(cut: int) -> httpx.Request:
    request = form()
    return httpx.Request(
        "POST", "http://x/", content=request.read()[:-cut], headers={"content-type": request.headers["content-type"]}
    )


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (truncated(4), "body"),
        (truncated(60), "body"),
        (httpx.Request("POST", "http://x/", content=b"x", headers={"content-type": "multipart/form-data"}), "body"),
        (form(at_least="many"), "at_least"),
        (form(at_least="[" * 5000), "at_least"),
        (form(at_least="9" * 5000), "at_least"),
        (form(nothing="1"), "nothing"),
        (form({"book": ("b.txt", b"")}), "book"),
        (form({"book": ("", b"")}), "body"),  # a page whose user has selected no file
        (form({"book": ("b.txt", BOOK), "notes": ("n", b"x" * 300_000)}), "notes"),
        (form(alphabet="a" * 300_000), "alphabet"),
        (form(at_least=["1", "2"]), "at_least"),
        (form(**{"at_least[]": "1"}), "at_least[]"),
        (form([("book", BOOK), ("book", BOOK)]), "book"),
        (form([(f"part{n}", BOOK) for n in range(1025)]), "body"),
        (form({"text": ("t", b"\xff")}), "text"),
        (form({"text": ("t", b"a" * 1001)}), "text"),
        (httpx.Request("POST", "http://x/?alphabet=a", files={"book": BOOK}, data={"alphabet": "a"}), "alphabet"),
        (file_body(b""), "book"),
        (file_body(at_least=1.5), "at_least"),
        (file_body(at_least=[1, 2]), "at_least"),
        (file_body(book="x"), "book"),
        (file_body(b"x" * 500_001), "book"),
    ],
)  # fmt: skip
async def test_a_violation_names_its_field(request_: httpx.Request, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await read(request_)
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_a_content_type_that_no_field_takes_is_refused() -> None:
    with pytest.raises(UnsupportedMediaType, match="book"):
        await read(file_body(kind="image/png"))
    with pytest.raises(WorkerError, match="name the worker"):
        await read(file_body(), at_worker=False)
    with pytest.raises(WorkerError, match="name the worker"):
        await read(form(worker="", model=""), at_worker=False)
