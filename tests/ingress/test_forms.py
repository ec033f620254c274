"""Forms as HTTP clients write them, byte by byte: browsers, curl, and the libraries of several languages."""

from __future__ import annotations

import base64
import encodings
import tracemalloc
from contextlib import suppress
from typing import Annotated, Any, Literal

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from starlette.requests import Request

from deployments.echo import SPEC as ECHO
from rbee_serve.config import WorkerConfig
from rbee_serve.content import FileField
from rbee_serve.errors import InvalidRequest
from rbee_serve.ingress.addressing import resolve_request
from rbee_serve.ingress.multipart import FormPart, parts_of
from rbee_serve.ingress.services import Worker
from rbee_serve.ingress.upload import text_of, typed
from rbee_serve.request import InferenceRequest
from rbee_serve.validation.parse import parse_object
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

FILES = {
    "curl -F audio=@a.wav": b'Content-Disposition: form-data; name="audio"; filename="a.wav"\nContent-Type: audio/wav',
    "bytes without a file name, with a content type": (
        b'Content-Disposition: form-data; name="audio"\nContent-Type: audio/wav'
    ),
    "bytes without a file name or a content type": b'Content-Disposition: form-data; name="audio"',
    "bytes that are declared as text": b'Content-Disposition: form-data; name="audio"\nContent-Type: text/plain',
    "an empty file name": (
        b'Content-Disposition: form-data; name="audio"; filename=""\nContent-Type: application/octet-stream'
    ),
    ".NET, without quotes": b"Content-Type: audio/wav\nContent-Disposition: form-data; name=audio; filename=a.wav",
    ".NET, with filename*": (b"Content-Disposition: form-data; name=audio; filename=a.wav; filename*=utf-8''a%20b.wav"),
    "filename* alone": b"Content-Disposition: form-data; name=\"audio\"; filename*=UTF-8''%E2%82%AC.wav",
    "the file name first": b'Content-Disposition: form-data; filename="x; name=title"; name="audio"',
    "quotes within the file name": rb'Content-Disposition: form-data; name="audio"; filename="a \"b\" \\ c.wav"',
    "quotes as a browser escapes them": b'Content-Disposition: form-data; name="audio"; filename="a%22b.wav"',
    "a file name in UTF-8": 'Content-Disposition: form-data; name="audio"; filename="ä€.wav"'.encode(),
    "Go, octet-stream": (
        b'Content-Disposition: form-data; name="audio"; filename="a"\nContent-Type: application/octet-stream'
    ),
    "OkHttp, with a length": (
        b'Content-Disposition: form-data; name="audio"; filename="a.wav"\nContent-Type: audio/wav\nContent-Length: 9'
    ),
    "binary": b'Content-Disposition: form-data; name="audio"\nContent-Transfer-Encoding: binary',
    "8bit": b'content-disposition: FORM-DATA; NAME="audio"\ncontent-transfer-encoding: 8BIT',
    "no space behind a semicolon": b'Content-Disposition:form-data;name="audio";filename="a.wav"',
}


@pytest.mark.parametrize("headers", FILES.values(), ids=FILES)
async def test_a_file_is_taken_however_its_part_is_written(headers: bytes) -> None:
    assert await read(part(headers, SOUND) + TITLE + END) == {"audio": SOUND, "title": "t"}


async def test_a_file_without_a_name_may_be_larger_than_a_text() -> None:
    large = bytes(300_000)
    assert (await read(field("audio", large) + TITLE + END))["audio"] == large


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        (b"base64", base64.encodebytes(SOUND)),
        (b"BASE64", base64.b64encode(SOUND)),
        (b"quoted-printable", b"RIFF=24=00=0D=0A=0D=0A--bx=0D=0A=0A--b=0D=80=FF--bo=\r\nundary"),
    ],
)
async def test_an_encoded_part_is_decoded(encoding: bytes, content: bytes) -> None:
    headers = b'Content-Disposition: form-data; name="audio"; filename="a"\nContent-Transfer-Encoding: ' + encoding
    assert (await read(part(headers, content) + TITLE + END))["audio"] == SOUND


async def test_a_data_url_in_place_of_a_file_is_the_file() -> None:
    url = b"data:audio/wav;base64," + base64.b64encode(SOUND)
    assert (await read(field("audio", url) + TITLE + END))["audio"] == SOUND


BOUNDARIES = {
    "in quotes": ('multipart/form-data; boundary="a b:c"', b"a b:c"),
    "in capitals, with a charset": ("Multipart/Form-Data; charset=utf-8; BOUNDARY=b", b"b"),
    "of a browser": ("multipart/form-data; boundary=----WebKitFormBoundaryx1", b"----WebKitFormBoundaryx1"),
    "of .NET": ('multipart/form-data; boundary="5f1c-9"', b"5f1c-9"),
    "with punctuation": ("multipart/form-data; boundary='()+_,-./:=?", b"'()+_,-./:=?"),
}


@pytest.mark.parametrize(("content_type", "boundary"), BOUNDARIES.values(), ids=BOUNDARIES)
async def test_a_boundary_may_be_any(content_type: str, boundary: bytes) -> None:
    headers = b'Content-Disposition: form-data; name="title"'
    body = part(headers, b"text", boundary=boundary) + b"--" + boundary + b"--"
    assert (await read(body, content_type))["title"] == "text"


LAYOUTS = {
    "text before and after": b"This is a form.\r\n" + TITLE + END + b"That was it.\r\n--b\r\nmore",
    "blanks behind the boundary": field("prompt", b"") + TITLE.replace(b"--b\r\n", b"--b \t\r\n") + b"--b-- \r\n",
    "lines that end in LF": part(b'Content-Disposition: form-data; name="title"', b"t", line=b"\n") + b"--b--\n",
    "no line end at the end": TITLE + b"--b--",
    "a blank line first": b"\r\n" + TITLE + END,
    "a content that begins like the boundary": TITLE + field("prompt", b"x\r\n--bb\r\n--b.\r\n--b!") + END,
}


@pytest.mark.parametrize("body", LAYOUTS.values(), ids=LAYOUTS)
async def test_a_form_may_be_laid_out_in_any_valid_way(body: bytes) -> None:
    found = await read(body)
    assert found["title"] == "t"
    assert found.get("prompt") in (None, "x\r\n--bb\r\n--b.\r\n--b!")


async def test_a_file_of_a_form_with_lf_keeps_its_last_byte() -> None:
    headers = b'Content-Disposition: form-data; name="audio"'
    title = part(b'Content-Disposition: form-data; name="title"', b"t", line=b"\n")
    assert (await read(part(headers, b"x\r", line=b"\n") + title + b"--b--"))["audio"] == b"x\r"
    assert (await read(part(headers, b"x\n\n") + TITLE + END))["audio"] == b"x\n\n"
    near = b"\n--bb\n--b.\n--b-x"
    assert (await read(part(headers, near, line=b"\n") + title + b"--b--"))["audio"] == near


VALUES: list[tuple[str, str, Any]] = [
    ("count", "16", 16),
    ("count", " 16 ", 16),
    ("count", "16.0", 16),
    ("count", "+3", 3),
    ("temperature", ".5", 0.5),
    ("temperature", "1", 1.0),
    ("temperature", "1e-1", 0.1),
    *(("strict", text, True) for text in ("true", "True", "TRUE", "1", "on", "yes")),
    *(("strict", text, False) for text in ("false", "False", "0", "off", "No")),
    ("stop", "END", ["END"]),
    ("stop", "[x]", ["[x]"]),
    ("stop", '["a", "b"]', ["a", "b"]),
    ("stop[]", "a", ["a"]),
    ("sizes", "3", [3]),
    ("sizes", "[3, 4]", [3, 4]),
    ("prompt", "123", "123"),
    ("prompt", "true", "true"),
    ("prompt", "None", "None"),
    ("prompt", '{"a": 1}', '{"a": 1}'),
    ("mode", "none", "none"),
    ("extra", '{"a": [1]}', {"a": [1]}),
]


@pytest.mark.parametrize(("name", "text", "value"), VALUES)
async def test_a_text_is_read_as_the_type_of_its_field(name: str, text: str, value: Any) -> None:
    form = await read(field(name, text.encode()) + TITLE + END)
    assert form == {"title": "t", name.removesuffix("[]"): value}
    encoded = str(httpx.QueryParams({"title": "t", name: text})).encode()
    assert await read(encoded, "application/x-www-form-urlencoded") == form
    assert await read(b'{"title":"t"}', "application/json", str(httpx.QueryParams({name: text})).encode()) == form


@pytest.mark.parametrize("name", [name for name, field in FormRequest.model_fields.items() if not field.is_required()])
async def test_an_empty_field_and_null_are_not_given(name: str) -> None:
    assert await read(field(name, b"") + TITLE + END) == {"title": "t"}
    if name not in ("audio", "prompt", "mode", "job_id", "stop"):  # where these words are texts
        for null in (b"None", b"null", b"undefined"):
            assert await read(field(name, null) + TITLE + END) == {"title": "t"}


async def test_a_repeated_name_is_an_item_of_a_list_each_time() -> None:
    for name in ("stop", "stop[]"):
        assert (await read(field(name, b"a") + TITLE + field(name, b"") + field(name, b"[b") + END))["stop"] == [
            "a",
            "[b",
        ]
    assert (await read(field("sizes", b"1") + TITLE + field("sizes", b"2") + END))["sizes"] == [1, 2]


async def test_a_text_may_come_as_a_file_and_in_its_own_charset() -> None:
    file = b'Content-Disposition: form-data; name="title"; filename="t.txt"\nContent-Type: text/plain'
    assert (await read(part(file, "é€".encode()) + END))["title"] == "é€"
    latin = part(file + b'; charset="ISO-8859-1"', b"caf\xe9") + END
    assert (await read(latin))["title"] == "café"
    assert await read(field("_charset_", b"windows-1252") + field("title", b"\x80") + END) == {"title": "€"}


async def test_a_part_that_is_json_is_read_as_json() -> None:
    headers = b'Content-Disposition: form-data; name="%s"\nContent-Type: application/json; charset=UTF-8'
    body = part(headers % b"title", b'"quoted"') + part(headers % b"extra", b'{"a": null}') + END
    assert await read(body) == {"title": "quoted", "extra": {"a": None}}


ENCODED = "application/x-www-form-urlencoded"


@pytest.mark.parametrize("size", [*range(65_530, 65_545), 131_071, 131_075])
async def test_a_long_text_in_a_url_encoded_form_is_whole(size: int) -> None:
    text = "x" * size + "%é+&=" * 9
    assert await read(httpx.Request("POST", "http://x/", data={"title": text}).read(), ENCODED) == {"title": text}
    assert await read(b"title=" + b"x" * size + b"%4%zz%", ENCODED) == {"title": "x" * size + "%4%zz%"}


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (ENCODED, b"title=" + b"%41" * 400_000),
        ("multipart/form-data; boundary=b", part(
            b'Content-Disposition: form-data; name="audio"\nContent-Transfer-Encoding: base64', b"ab cd\t" * 200_000
        ) + END),
    ],
    ids=["URL-encoded", "base64"],
)  # fmt: skip
async def test_no_form_takes_many_times_its_size_in_memory(content_type: str, body: bytes) -> None:
    tracemalloc.start()
    try:
        with suppress(InvalidRequest):
            await read(body, content_type)
        assert tracemalloc.get_traced_memory()[1] < 12 * len(body)
    finally:
        tracemalloc.stop()


async def test_an_unknown_charset_is_not_kept() -> None:
    before = len(encodings._cache)
    for n in range(3):
        with pytest.raises(InvalidRequest, match="declared charset"):
            await read(field("_charset_", b"made-up-%d" % n) + TITLE + END)
    assert len(encodings._cache) == before


@pytest.mark.parametrize("name", ["UTF8", "utf-8", "us-ascii", "Windows-1252", "ISO_8859-15", "latin1", "utf-8-sig"])
async def test_a_charset_has_any_of_its_names(name: str) -> None:
    assert (await read(field("_charset_", name.encode()) + TITLE + END))["title"] == "t"


def test_a_text_that_names_a_worker_is_bounded() -> None:
    with pytest.raises(InvalidRequest, match="worker: must have at most 262144 bytes in a form"):
        text_of({"worker": [FormPart("worker", b"x" * 262_145)]}, "worker")


async def test_a_form_of_curl_d_is_read_and_json_of_curl_d_stays_json() -> None:
    expected = {"title": "a b&c", "stop": ["x", "y"], "count": 2}
    assert await read(b"title=a+b%26c&stop=x&stop=y&count=2", ENCODED) == expected
    for text in (b'{"title":"a=b"}', b' \n{"title":"a=b"}', b'\xef\xbb\xbf{"title":"a=b"}'):
        assert await read(text, ENCODED) == {"title": "a=b"}
    with pytest.raises(InvalidRequest, match="valid UTF-8 JSON"):
        await read(b"title", ENCODED)


async def test_the_query_beside_json_counts_and_contradicts_nothing() -> None:
    body = b'{"title":"t","count":3,"strict":null}'
    assert await read(body, "application/json", b"stream=false&strict=True&count=3") == {
        "title": "t",
        "stream": False,
        "count": 3,
        "strict": True,
    }
    for query, name in ((b"count=4", "count"), (b"cuont=4", "cuont"), (b"count=3&count=3", "count")):
        with pytest.raises(InvalidRequest) as caught:
            await read(body, "application/json", query)
        assert [violation.field for violation in caught.value.violations] == [name]


IMPOSSIBLE = {
    "NaN": ("temperature", "NaN", "finite"),
    "infinity": ("temperature", "Infinity", "finite"),
    "a number beyond all floats": ("temperature", "1e999", "finite"),
    "a lone surrogate": ("extra", r'{"a": "\ud800"}', "type: object"),
    "deep nesting": ("extra", '{"a": ' + "[" * 900 + "]" * 900 + "}", "type: object"),
}


@pytest.mark.parametrize(("name", "text", "constraint"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
async def test_what_json_cannot_hold_is_refused_in_forms_and_queries_too(name: str, text: str, constraint: str) -> None:
    encoded = str(httpx.QueryParams({"title": "t", name: text})).encode()
    headers = f'Content-Disposition: form-data; name="{name}"\nContent-Type: application/json'.encode()
    for body, content_type, query in (
        (field(name, text.encode()) + TITLE + END, "multipart/form-data; boundary=b", b""),
        (part(headers, text.encode()) + TITLE + END, "multipart/form-data; boundary=b", b""),
        (encoded, ENCODED, b""),
        (b"{}", "application/json", encoded),
    ):
        with pytest.raises(InvalidRequest) as caught:
            await read(body, content_type, query)
        assert [(each.field, each.constraint) for each in caught.value.violations] == [(name, constraint)]


REFUSED = {
    "a scalar twice": (field("count", b"1") + field("count", b"1") + TITLE + END, "count", "once"),
    "a file twice": (field("audio", b"1") + field("audio", b"1") + TITLE + END, "audio", "once"),
    "a required text that is empty": (field("title", b"") + END, "title", "length >= 1"),
    "a required text that lacks": (field("prompt", b"p") + END, "title", "required"),
    "an unknown field": (field("promt", b"p") + TITLE + END, "promt", "unknown field"),
    "a list's name for a field that is none": (field("count[]", b"1") + TITLE + END, "count[]", "unknown field"),
    "a number that is none": (field("count", b"many") + TITLE + END, "count", "type: integer"),
    "a boolean that is none": (field("strict", b"maybe") + TITLE + END, "strict", "type: boolean"),
    "base64 that is none": (
        part(b'Content-Disposition: form-data; name="audio"\nContent-Transfer-Encoding: base64', b"?") + TITLE + END,
        "audio",
        "encoding",
    ),
    "an unknown encoding": (
        part(b'Content-Disposition: form-data; name="audio"\nContent-Transfer-Encoding: x-gzip', b"?") + TITLE + END,
        "audio",
        "encoding",
    ),
    "text in no charset": (field("title", b"\xff") + END, "title", "charset"),
    "a codec that unpacks": (
        part(b'Content-Disposition: form-data; name="title"\nContent-Type: text/plain; charset=zlib', b"x") + END,
        "title",
        "charset",
    ),
    "no closing boundary": (TITLE, "body", "form"),
    "a boundary that is cut": (TITLE + b"--b-", "body", "form"),
    "another boundary": (TITLE.replace(b"--b", b"--c") + b"--c--", "body", "form"),
    "no part": (END, "title", "required"),
    "an empty body": (b"", "body", "form"),
    "a part without a name": (part(b"Content-Disposition: form-data", b"x") + END, "body", "form"),
    "a part without headers": (b"--b\r\n\r\nx\r\n" + END, "body", "form"),
    "a folded header, which RFC 9110 forbids": (
        part(b'Content-Disposition: form-data;\n name="title"', b"t") + END,
        "body",
        "form",
    ),
    "many headers": (
        part(b"X: x\n" * 65 + b'Content-Disposition: form-data; name="title"', b"t") + END,
        "body",
        "form",
    ),
    "long headers together": (
        part(b"".join(b"X%d: " % n + b"x" * 8000 + b"\n" for n in range(3)) + b"X: x", b"t") + END,
        "body",
        "form",
    ),
    "1,025 parts in lines of LF": (
        part(b'Content-Disposition: form-data; name="a"', b"", line=b"\n") * 1025 + b"--b--\n",
        "body",
        "form",
    ),
    "headers that do not end": (b"--b\r\nX: " + b"x" * 20_000 + b"\r\n\r\n\r\n" + END, "body", "form"),
    "1,025 parts": (b"".join(field(f"x{n}", b"") for n in range(1025)) + END, "body", "form"),
}


@pytest.mark.parametrize(("body", "name", "constraint"), REFUSED.values(), ids=REFUSED)
async def test_a_refusal_names_the_field_and_the_rule(body: bytes, name: str, constraint: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await read(body)
    assert [(violation.field, violation.constraint) for violation in caught.value.violations] == [(name, constraint)]


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "x" * 257],
)
async def test_a_missing_boundary_is_named_with_its_usual_cause(content_type: str) -> None:
    with pytest.raises(InvalidRequest, match="let the HTTP library set that header"):
        await read(TITLE + END, content_type)


def test_a_body_of_near_boundaries_is_read_in_linear_time() -> None:
    near = b"\r\n--b." * 4_000_000
    assert parts_of("multipart/form-data; boundary=b", field("a", near) + END) == [FormPart("a", near)]


@given(st.lists(st.tuples(st.text('ab[]"% é', min_size=1), st.one_of(st.binary(), st.text("\r\n-b:").map(str.encode)))))
def test_what_a_library_writes_is_read_back(fields: list[tuple[str, bytes]]) -> None:
    request = httpx.Request("POST", "http://x/", files=[(name, ("f", content)) for name, content in fields])
    if fields:
        found = parts_of(request.headers["content-type"], request.read())
        written = [(name.replace("%22", '"').replace("%0A", "\n").replace("%0D", "\r"), each) for name, each in fields]
        assert [(part.name, part.content) for part in found] == written


@given(
    st.lists(
        st.sampled_from(
            [
                b"--b",
                b"--",
                b"\r\n",
                b"\n",
                b"\r",
                b" ",
                b"x",
                b'Content-Disposition: form-data; name="a"',
                b":",
                b'"',
                b"\x00",
            ]
        )
    )
)
def test_any_bytes_are_a_form_or_refused(pieces: list[bytes]) -> None:
    with suppress(InvalidRequest):
        parts_of("multipart/form-data; boundary=b", b"".join(pieces))


@given(st.text(), st.sampled_from(sorted(FormRequest.model_fields)))
def test_any_text_of_a_field_is_a_value_or_refused(text: str, name: str) -> None:
    encoded = text.encode(errors="surrogatepass")
    with suppress(InvalidRequest):
        parse_object(FormRequest, typed({name: [FormPart(name, encoded)]}, "multipart/form-data", FormRequest))
