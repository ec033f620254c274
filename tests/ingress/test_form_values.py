"""Fields of a form: texts as the types of their fields, and what is refused."""

from __future__ import annotations

import encodings
from contextlib import suppress
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_serve.errors import InvalidRequest
from rbee_serve.ingress.multipart import FormPart
from rbee_serve.ingress.upload import text_of, typed
from rbee_serve.validation.parse import parse_object
from tests.ingress.forms import ENCODED, END, TITLE, FormRequest, field, part, read

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


@pytest.mark.parametrize("size", [*range(65_530, 65_545), 131_071, 131_075])
async def test_a_long_text_in_a_url_encoded_form_is_whole(size: int) -> None:
    text = "x" * size + "%é+&=" * 9
    assert await read(httpx.Request("POST", "http://x/", data={"title": text}).read(), ENCODED) == {"title": text}
    assert await read(b"title=" + b"x" * size + b"%4%zz%", ENCODED) == {"title": "x" * size + "%4%zz%"}


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


@given(st.text(), st.sampled_from(sorted(FormRequest.model_fields)))
def test_any_text_of_a_field_is_a_value_or_refused(text: str, name: str) -> None:
    encoded = text.encode(errors="surrogatepass")
    with suppress(InvalidRequest):
        parse_object(FormRequest, typed({name: [FormPart(name, encoded)]}, "multipart/form-data", FormRequest))
