"""Image classification over HTTP."""

from __future__ import annotations

import base64
import json
import os
import zlib
from typing import Any

import httpx
import pytest

from deployments.vision.classify import ClassifyRequest
from rbee_serve.client.client import Client
from rbee_serve.events import Output
from rbee_serve.grammar import check_stream
from rbee_serve.outputs import LabelOutput
from tests.conftest import Served
from tests.served.models import CLASSIFY, serving
from tests.served.waiting import eventually
from tests.vision.images import encoded, png, sample_image

pytestmark = [pytest.mark.ray, serving(CLASSIFY)]

WORKER = CLASSIFY["id"]
NAMES = ["a cat", "two dogs", "the sea"]
FILE = encoded(sample_image(90, 60), "JPEG")


@pytest.fixture(scope="module")
def url(served: Served) -> str:
    base = served.base(WORKER)
    eventually(lambda: httpx.get(f"{base}/v1/ready").json()["ready"], 240)
    return f"{base}/v1/inference"


def post(url: str, **options: Any) -> httpx.Response:
    return httpx.post(url, timeout=60, **options)


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_json_a_form_and_a_raw_body_give_the_same_labels(url: str) -> None:
    form = {"labels": json.dumps(NAMES), "stream": "false", "top_k": "2"}
    responses = [
        post(url, json={"image": base64_of(FILE), "labels": NAMES, "stream": False, "top_k": 2}),
        post(
            url,
            json={"image": f"data:image/jpeg;base64,{base64_of(FILE)}", "labels": NAMES, "stream": False, "top_k": 2},
        ),
        post(url, files={"image": ("cat.jpg", FILE)}, data=form),
        post(url, content=FILE, headers={"content-type": "image/jpeg"}, params=form),
    ]
    first, *others = [response.json()["labels"] for response in responses]
    assert [len(first), *others] == [2, first, first, first]
    assert {label["label"] for label in first} < set(NAMES)


def test_labels_are_one_event_and_one_object_of_the_client(url: str, served: Served) -> None:
    events = check_stream(post(url, json={"image": base64_of(FILE), "labels": NAMES}).content, LabelOutput)
    (output,) = [event.value for event in events if isinstance(event, Output)]
    with Client(served.url, outputs=[LabelOutput]) as client:
        with client.stream(WORKER, image=base64_of(FILE), labels=NAMES) as stream:
            assert [event.value for event in stream if isinstance(event, Output)] == [output]
        result = client.infer(WORKER, image=base64_of(FILE), labels=NAMES)
    assert result["labels"] == [{"label": label.label, "score": label.score} for label in output.labels]


def test_a_handle_returns_typed_labels(url: str, served: Served) -> None:
    request = ClassifyRequest(image=FILE, labels=NAMES, top_k=2)
    handle = served.handle(WORKER)
    (value,) = [e.value for e in handle.options(stream=True).stream_events.remote(request) if isinstance(e, Output)]
    assert isinstance(value, LabelOutput)
    assert len(value.labels) == 2
    assert handle.collect.remote(request).result(timeout_s=60).outputs == (value,)


BOMB = png(9380, 9380, zlib.compress(bytes(1174 * 9380), 9), bits=1, colour=0)
BAD: dict[str, tuple[Any, str]] = {
    "not base64": ("@@@", "base64"),
    "empty": ("", "length >= 1"),
    "no image": (b"\0\1", "format"),
    "a GIF": (b"GIF89a" + bytes(99), "format"),
    "a claim of 65,535 squared": (png(65_535, 65_535, zlib.compress(bytes(999))), "pixels <= 50000000"),
    "88 megapixels in 12 kB": (BOMB, "pixels <= 50000000"),
    "a line": (encoded(sample_image(1000, 2), "PNG"), "ratio <= 100"),
    "cut short": (FILE[:-300], "readable"),
    "only a head": (b"\x89PNG\r\n\x1a\n", "readable"),
    "garbage after a head": (b"\xff\xd8\xff" + os.urandom(5000), "readable"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_reason_and_the_next_one_is_classified(url: str, name: str) -> None:
    data, constraint = BAD[name]
    response = post(url, json={"image": base64_of(data) if isinstance(data, bytes) else data, "labels": NAMES})
    assert response.status_code == 400
    (error,) = response.json()["errors"]
    assert (error["field"], error["constraint"]) == ("image", constraint)
    assert "value" not in error
    assert not any(word in response.text for word in ("0x", "Traceback", "PIL", "/"))
    assert post(url, json={"image": base64_of(FILE), "labels": NAMES, "stream": False}).status_code == 200
