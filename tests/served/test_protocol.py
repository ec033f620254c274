"""Every route of the wire protocol, over a real socket, with plain HTTP clients."""

from __future__ import annotations

import base64
import re
import threading
from typing import Any

import httpx
import pytest

from rbee_serve.events import End, Error, Metrics, Narration, Output, Progress, Started
from rbee_serve.grammar import check_stream
from tests.conftest import MAX_BODY_BYTES, Served
from tests.outside_worker import LetterOutput
from tests.served.waiting import eventually

pytestmark = pytest.mark.ray


def infer(served: Served, worker_id: str, body: Any, **options: Any) -> httpx.Response:
    return httpx.post(f"{served.base(worker_id)}/v1/inference", json=body, timeout=30, **options)


def test_the_root_is_healthy_while_a_worker_still_loads(served: Served) -> None:
    assert httpx.get(f"{served.url}/health").json() == {"status": "healthy"}


def test_a_loading_worker_refuses_with_its_progress_url_and_retry_after(served: Served) -> None:
    eventually(lambda: served.handle("hub").snapshot.remote().result().worker("echo-slow").load)
    ready = httpx.get(f"{served.base('echo-slow')}/v1/ready").json()
    assert (ready["ready"], ready["state"]) == (False, "loading")
    assert ready["progress_url"] == f"{served.base('echo-slow')}/v1/loading/progress"
    response = infer(served, "echo-slow", {"prompt": "hi"})
    assert (response.status_code, response.json()["code"], response.json()["retriable"]) == (
        503,
        "WORKER_LOADING",
        True,
    )
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["progress_url"] == ready["progress_url"]
    threading.Timer(0.5, served.release.touch).start()
    frames = httpx.get(ready["progress_url"], timeout=40).text.split("\n\n")
    assert frames[-3:] == ['data: {"stage":"ready"}', "data: [DONE]", ""]


def test_readiness_reports_a_failed_load_with_its_reason(served: Served) -> None:
    eventually(lambda: served_state(served, "echo-broken") == "error")
    response = httpx.get(f"{served.url}/v1/ready")
    workers = {worker["id"]: worker for worker in response.json()["workers"]}
    assert response.status_code == 503
    assert workers["echo-broken"]["reason"] == "this model has no weights; give another model_ref"
    assert workers["echo-0"] == {"id": "echo-0", "ready": True, "state": "idle"}
    refused = infer(served, "echo-broken", {"prompt": "hi"})
    assert (refused.status_code, refused.json()["code"]) == (503, "WORKER_UNHEALTHY")
    assert httpx.get(f"{served.base('echo-broken')}/health").status_code == 503
    assert httpx.get(f"{served.base('echo-broken')}/v1/loading/progress").status_code == 503


def served_state(served: Served, worker_id: str) -> str:
    return str(httpx.get(f"{served.base(worker_id)}/v1/ready").json()["state"])


def test_a_ready_worker_is_ready_and_healthy(served: Served) -> None:
    eventually(lambda: served_state(served, "echo-0") == "idle")
    assert httpx.get(f"{served.base('echo-0')}/v1/ready").json() == {
        "ready": True,
        "state": "idle",
        "model_loaded": True,
    }
    health = httpx.get(f"{served.base('echo-0')}/health")
    assert health.status_code == 200
    assert health.json()["status"] == "healthy"
    assert health.json()["vram_bytes"] > 1024**2
    assert health.json()["vram_source"] == "ram"


def test_info_describes_the_worker(served: Served) -> None:
    info = httpx.get(f"{served.base('echo-0')}/info").json()
    assert info == {
        "id": "echo-0",
        "model_id": "echo",
        "device": "CPU-0",
        "devices": ["CPU-0"],
        "port": int(served.url.rsplit(":", 1)[1]),
        "status": "ready",
        "implementation": "rbee-serve/echo",
        "version": info["version"],
        "vram_bytes": info["vram_bytes"],
        "vram_source": "ram",
    }
    listed = httpx.get(f"{served.url}/v1/workers").json()["workers"]
    echo = next(worker for worker in listed if worker["id"] == "echo-0")
    assert echo["url"] == served.base("echo-0")
    assert echo["limits"]["prompt"] == {"minLength": 1, "maxLength": 32768}


def test_a_stream_has_every_event_of_the_grammar(served: Served) -> None:
    body = {"prompt": "one two three", "progress": True, "job_id": "job-7"}
    response = infer(served, "echo-0", body, headers={"X-Correlation-ID": "corr.1-a"})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-correlation-id"] == "corr.1-a"
    events = check_stream(response.content)
    assert isinstance(events[0], Started)
    assert events[0].job_id == "job-7"
    assert {type(event) for event in events} == {Started, Output, Progress, Metrics, Narration, End}
    assert "".join(event.value.t for event in events if isinstance(event, Output)) == "one two three"


def test_without_stream_the_response_is_one_result(served: Served) -> None:
    result = infer(served, "echo-0", {"prompt": "one two", "stream": False}).json()
    assert (result["text"], result["tokens_out"], result["stop_reason"]) == ("one two", 2, "COMPLETE")
    assert result["metrics"]["tokens_per_sec"] > 0


def test_the_root_route_selects_the_worker_by_id_or_model(served: Served) -> None:
    for name in ({"worker": "echo-outside"}, {"model": "tests.outside_worker:SPEC"}):
        response = httpx.post(f"{served.url}/v1/inference", json={**name, "text": "abca", "stream": False})
        assert response.json()["letters"] == {"a": 2, "b": 1, "c": 1}
    unknown = httpx.post(f"{served.url}/v1/inference", json={"worker": "nobody", "prompt": "x"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "WORKER_NOT_FOUND")
    unnamed = httpx.post(f"{served.url}/v1/inference", json={"prompt": "x"})
    assert (unnamed.status_code, unnamed.json()["errors"][0]["field"]) == (400, "worker")


def test_a_worker_type_from_another_package_has_every_route(served: Served) -> None:
    events = check_stream(infer(served, "echo-outside", {"text": "abca"}).content, LetterOutput)
    assert [event.value.count for event in events if isinstance(event, Output)] == [2, 1, 1]
    assert httpx.get(f"{served.base('echo-outside')}/info").json()["implementation"] == "rbee-serve/letters"
    assert httpx.get(f"{served.base('echo-outside')}/health").json() == {"status": "healthy", "vram_bytes": 26}


def test_a_file_can_be_uploaded_and_returned(served: Served) -> None:
    url = f"{served.base('echo-outside')}/v1/inference"
    book = b"abracadabra " * 30_000
    form = {"alphabet": "ar", "stream": "false", "as_table": "true"}
    responses = [
        httpx.post(url, files={"book": ("book.txt", book)}, data=form, timeout=30),
        httpx.post(url, content=book, headers={"content-type": "book/plain"}, params=form, timeout=30),
        httpx.post(
            url,
            json={"book": base64.b64encode(book).decode(), "alphabet": "ar", "stream": False, "as_table": True},
            timeout=30,
        ),
    ]
    for response in responses:
        assert (response.status_code, response.text) == (200, "a,150000\nr,60000\n")
        assert response.headers["content-type"].startswith("text/csv")


def test_bad_input_reports_every_field(served: Served) -> None:
    response = infer(served, "echo-0", {"prompt": "", "max_tokens": 0, "temprature": 1, "delay_s": True})
    assert response.status_code == 400
    body = response.json()
    assert (body["code"], body["retriable"]) == ("INVALID_REQUEST", False)
    assert {error["field"] for error in body["errors"]} == {"prompt", "max_tokens", "temprature", "delay_s"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "NOT_FOUND"),
        ("GET", "//v1/ready", 404, "NOT_FOUND"),
        ("GET", "/v1/ready//", 404, "NOT_FOUND"),
        ("GET", "/workers/nobody/health", 404, "WORKER_NOT_FOUND"),
        ("GET", "/workers/echo-0/v1/inference", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/health", 405, "METHOD_NOT_ALLOWED"),
    ],
)
def test_a_wrong_path_or_method_has_its_own_code(
    served: Served, method: str, path: str, status: int, code: str
) -> None:
    response = httpx.request(method, f"{served.url}{path}")
    assert (response.status_code, response.json()["code"]) == (status, code)


def test_a_slash_at_the_end_of_a_path_changes_nothing(served: Served) -> None:
    assert httpx.get(f"{served.url}/v1/ready/").json().keys() == httpx.get(f"{served.url}/v1/ready").json().keys()


def test_a_body_over_the_limit_is_refused_with_and_without_a_declared_length(served: Served) -> None:
    url = f"{served.base('echo-0')}/v1/inference"
    parts = (b"x" * 65536 for _ in range(MAX_BODY_BYTES // 65536 + 1))
    for response in (httpx.post(url, content=b"x" * (MAX_BODY_BYTES + 1)), httpx.post(url, content=parts)):
        assert (response.status_code, response.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")


def test_unsupported_content_types_are_refused(served: Served) -> None:
    url = f"{served.base('echo-0')}/v1/inference"
    for headers in ({"content-type": "image/png"}, {"content-encoding": "gzip"}):
        response = httpx.post(url, content=b"{}", headers=headers)
        assert (response.status_code, response.json()["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize(
    ("fail", "code"), [("exception", "INTERNAL"), ("oom", "INSUFFICIENT_VRAM"), ("no_end", "INTERNAL")]
)
def test_a_failure_during_a_stream_is_an_error_event(served: Served, fail: str, code: str) -> None:
    response = infer(served, "echo-0", {"prompt": "a b c", "fail": fail, "fail_at": 1})
    events = check_stream(response.content)
    assert isinstance(events[-1], Error)
    assert events[-1].code == code
    assert not re.search(rb"0x|/secret|Traceback", response.content)


def test_without_stream_a_failure_is_a_status(served: Served) -> None:
    response = infer(served, "echo-0", {"prompt": "a", "fail": "error", "code": "INFERENCE_TIMEOUT", "stream": False})
    assert (response.status_code, response.json()["code"]) == (408, "INFERENCE_TIMEOUT")
