"""A worker that takes forms, and forms as bytes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request

from deployments.echo import SPEC as ECHO
from rbee_serve.config import WorkerConfig
from rbee_serve.content import FileField
from rbee_serve.ingress.addressing import resolve_request
from rbee_serve.ingress.services import Worker
from rbee_serve.request import InferenceRequest
from tests.ingress.application import services_of

SOUND = b"RIFF\x24\x00\r\n\r\n--bx\r\n\n--b\r\x80\xff--boundary"
"""A file with bytes that look like parts of a form."""


class FormRequest(InferenceRequest):
    audio: Annotated[bytes | None, Field(min_length=1, repr=False), FileField("audio")] = None
    title: Annotated[str, Field(min_length=1, max_length=300_000)]
    prompt: Annotated[str | None, Field(min_length=1, max_length=100)] = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    count: Annotated[int, Field(ge=0, le=100)] = 1
    strict: bool | None = None
    stop: list[Annotated[str, Field(min_length=1, max_length=20)]] = Field(default_factory=list, max_length=4)
    sizes: list[int] = Field(default_factory=list, max_length=4)
    mode: Literal["fast", "none"] = "fast"
    extra: dict[str, Any] | None = None


async def read(
    body: bytes, content_type: str = "multipart/form-data; boundary=b", query: bytes = b""
) -> dict[str, Any]:
    """The fields that the ingress reads from a body."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "query_string": query,
        "headers": [(b"content-type", content_type.encode("latin-1"))],
        "path_params": {"worker_id": "forms"},
    }
    services = services_of({"forms": Worker(WorkerConfig(id="forms", type="echo"), ECHO, FormRequest)}, "forms")
    _, request = await resolve_request(Request(scope, receive), services)
    return request.model_dump(exclude_unset=True)


def part(headers: bytes, content: bytes, *, boundary: bytes = b"b", line: bytes = b"\r\n") -> bytes:
    return b"--" + boundary + line + headers.replace(b"\n", line) + line + line + content + line


def field(name: str, content: bytes) -> bytes:
    return part(f'Content-Disposition: form-data; name="{name}"'.encode(), content)


END = b"--b--\r\n"


TITLE = field("title", b"t")


ENCODED = "application/x-www-form-urlencoded"
