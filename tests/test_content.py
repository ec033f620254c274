"""Files in JSON: base64 in the forms that encoders write it."""

from __future__ import annotations

import base64
import json
import time
import tracemalloc
from urllib.parse import quote

import pytest

from deployments.vision import ClassifyRequest
from rbee_serve.content import from_data_url
from rbee_serve.errors import InvalidRequest
from rbee_serve.validation.parse import parse

DATA = bytes(range(256)) + b"\xfb\xff\xfe?"
TEXT = base64.b64encode(DATA).decode()
URL_SAFE = base64.urlsafe_b64encode(DATA).decode()


def image(text: str) -> bytes:
    return parse(ClassifyRequest, json.dumps({"image": text}).encode()).image


@pytest.mark.parametrize(
    "text",
    [
        TEXT, URL_SAFE, TEXT.rstrip("="), URL_SAFE.rstrip("="), base64.encodebytes(DATA).decode(),
        base64.encodebytes(DATA).decode().replace("\n", "\r\n"), f"  {TEXT}\n", f"data:image/png;base64,{TEXT}",
        f"data:;base64,{TEXT}", f"DATA:image/png;charset=utf-8;BASE64,{URL_SAFE}", f"data:image/png;base64, {TEXT}",
        f"data:image/png;base64,{quote(TEXT, safe='')}",
        f"data:image/png;base64,{quote(base64.encodebytes(DATA).decode(), safe='')}",
    ],
)  # fmt: skip
def test_every_form_of_base64_is_decoded(text: str) -> None:
    assert image(text) == DATA


@pytest.mark.parametrize(
    "text",
    ["A", TEXT[:-3] + "!" + TEXT[-2:], "data:image/png," + TEXT, "data:image/png;base64", "http://a/b.png", "é" + TEXT,
     TEXT[:8] + "=" + TEXT[8:], "data:" + "x" * 300 + ";base64," + TEXT, "AAAAA"],
)  # fmt: skip
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="image: must be base64 or a base64 data URL"):
        image(text)


def test_a_large_file_with_line_breaks_is_decoded_quickly() -> None:
    data = bytes(8 * 2**20)
    started_at = time.monotonic()
    assert image(base64.encodebytes(data).decode()) == data
    assert time.monotonic() - started_at < 5


@pytest.mark.parametrize("text", [b"ab cd\t" * 200_000, b"%41" * 400_000, b"%2B" * 400_000])
def test_no_base64_takes_many_times_its_size_in_memory(text: bytes) -> None:
    url = b"data:image/png;base64," + text
    tracemalloc.start()
    try:
        from_data_url(url)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(url)
    finally:
        tracemalloc.stop()
