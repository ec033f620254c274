"""Image generation over HTTP."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from deployments.vision.generate import ImageRequest
from rbee_serve.client.client import Client
from rbee_serve.events import Output, Progress
from rbee_serve.grammar import check_stream
from rbee_serve.outputs import ImageOutput
from tests.conftest import Served
from tests.served.models import GENERATE, serving
from tests.served.processes import replica_process
from tests.served.waiting import eventually
from tests.vision.images import encoded, sample_image

pytestmark = [pytest.mark.ray, serving(GENERATE)]

WORKER = GENERATE["id"]
BODY: dict[str, Any] = {"prompt": "a cat", "steps": 4, "seed": 3}
FILE = encoded(sample_image(), "JPEG")


@pytest.fixture(scope="module")
def url(served: Served) -> str:
    base = served.base(WORKER)
    eventually(lambda: httpx.get(f"{base}/v1/ready").json()["ready"], 240)
    return f"{base}/v1/inference"


def post(url: str, **options: Any) -> httpx.Response:
    response = httpx.post(url, timeout=60, **options)
    assert response.status_code == 200, response.text
    return response


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_an_image_is_sent_as_events_as_json_or_as_a_file(url: str, served: Served) -> None:
    events = check_stream(post(url, json={**BODY, "preview_every": 2}).content, ImageOutput)
    preview, final = [event.value for event in events if isinstance(event, Output)]
    assert (preview.preview, preview.step, final.preview) == (True, 2, False)
    result = post(url, json={**BODY, "stream": False}).json()
    assert (result["format"], result["seed"]) == ("png", 3)
    assert [base64.b64decode(image) for image in result["images"]] == [final.patch]
    response = post(url, json={**BODY, "stream": False, "format": "png"})
    assert (response.headers["content-type"], response.content) == ("image/png", final.patch)
    with Client(served.url, outputs=[ImageOutput]) as client:
        with client.stream(WORKER, **BODY, preview_every=2) as stream:
            assert [event.value for event in stream if isinstance(event, Output)] == [preview, final]
        assert client.infer_file(WORKER, **BODY, format="png").data == final.patch


def test_an_image_and_its_mask_are_sent_as_a_form_or_as_base64(url: str) -> None:
    mask = encoded(np.full((32, 48), 255, np.uint8), "PNG")
    fields = {"prompt": "a cat", "steps": "4", "seed": "3", "strength": "0.5", "stream": "false", "format": "png"}
    by_form = post(url, data=fields, files={"image": ("a.jpg", FILE), "mask": ("m.png", mask)})
    files = {"image": base64.b64encode(FILE).decode(), "mask": base64.b64encode(mask).decode()}
    by_json = post(url, json={**BODY, **files, "strength": 0.5, "stream": False, "format": "png"})
    assert pixels(by_form.content).shape == (32, 48, 3)
    assert by_form.content == by_json.content
    alone = post(url, content=FILE, headers={"content-type": "image/jpeg"}, params=fields)
    assert pixels(alone.content).shape == (32, 48, 3)


def test_a_disconnect_cancels_the_request(url: str, served: Served) -> None:
    with httpx.stream("POST", url, json={"prompt": "a cat", "steps": 150, "num_images": 8}, timeout=60) as response:
        chunks = response.iter_bytes()
        next(chunks)
        eventually(lambda: served.working(WORKER) == 1)
    eventually(lambda: served.working(WORKER) == 0, 2)
    post(url, json={**BODY, "stream": False})


def test_a_handle_returns_typed_images_and_the_steps_between(url: str, served: Served) -> None:
    request = ImageRequest(**BODY, preview_every=2)
    handle = served.handle(WORKER)
    events = list(handle.options(stream=True).stream_events.remote(request))
    assert [event.step for event in events if isinstance(event, Progress)] == [1, 2, 3, 4]
    preview, final = [event.value for event in events if isinstance(event, Output)]
    assert (type(preview), preview.step, final.preview) == (ImageOutput, 2, False)
    result = handle.collect.remote(ImageRequest(**BODY, stream=False)).result(timeout_s=60)
    assert [output.patch for output in result.outputs] == [final.patch]


@pytest.mark.disruptive
def test_while_the_killed_process_of_an_engine_is_replaced_every_answer_is_to_try_again(
    url: str, served: Served
) -> None:
    [engine] = [
        process
        for process in replica_process(WORKER).children(recursive=True)
        if "rbee_serve.replica.backend_server" in process.cmdline()
    ]
    engine.kill()
    refusals: list[dict[str, Any]] = []
    deadline = time.monotonic() + 120
    while (response := httpx.post(url, json=BODY, timeout=60)).status_code != 200 or not refusals:
        assert time.monotonic() < deadline, "it has not been replaced"
        refusals += [response.json()] if response.status_code != 200 else []
        time.sleep(0.1)
    assert all(refusal["retriable"] for refusal in refusals), refusals
    assert {refusal["code"] for refusal in refusals} <= {"WORKER_LOADING", "WORKER_LOST"}
