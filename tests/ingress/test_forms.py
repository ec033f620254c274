"""Forms as HTTP clients write them, byte by byte: browsers, curl, and the libraries of several languages."""

from __future__ import annotations

import base64
import tracemalloc
from contextlib import suppress

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_serve.errors import InvalidRequest
from rbee_serve.ingress.multipart import FormPart, parts_of
from tests.ingress.forms import ENCODED, END, SOUND, TITLE, field, part, read

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
