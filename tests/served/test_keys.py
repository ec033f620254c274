"""Several keys, none of which may use all workers, through each frontend of an application of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import ECHO
from tests.served.frontends import Mode, settings
from tests.served.waiting import eventually
from tests.supervised import Supervisor, supervisor

pytestmark = pytest.mark.ray

MODES: list[Mode] = ["own", "throughput", "default", "haproxy"]
SLOW: dict[str, Any] = {"prompt": "a b c d e f g h i j", "tokens_per_sec": 0.2}


@pytest.fixture(scope="module", params=MODES)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    """`one` may use echo-0 with two requests at once, `two` echo-1 with three requests a minute. The supervisor itself
    sees both workers, or it would not finish its start."""
    folder = tmp_path_factory.mktemp("keys")
    keys: list[dict[str, Any]] = [
        {"name": "one", "workers": ["echo-0"], "max_ongoing_requests": 2},
        {"name": "two", "workers": ["echo-1"], "max_requests_per_minute": 3},
    ]
    for key in keys:
        (folder / key["name"]).write_text(f"{key['name']}-token\n")
        key["token_file"] = str(folder / key["name"])
    environment, file_keys = settings(request.param)
    workers = [{"id": "echo-0", **ECHO}, {"id": "echo-1", **ECHO}]
    with supervisor(folder, workers, environment, file_keys, auth={"keys": keys}) as running:
        running.until("Ctrl+C stops it")
        yield running


def client_of(running: Supervisor, token: str) -> httpx.Client:
    return httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {token}"}, timeout=10)


def test_a_key_sees_and_uses_its_own_workers(running: Supervisor) -> None:
    for name, own, other in (("one", "echo-0", "echo-1"), ("two", "echo-1", "echo-0")):
        with client_of(running, f"{name}-token") as client:
            assert [worker["id"] for worker in client.get("/v1/workers").json()["workers"]] == [own]
            ready = client.get("/v1/ready")
            assert (ready.status_code, [worker["id"] for worker in ready.json()["workers"]]) == (200, [own])
            assert client.get(f"/workers/{own}/info").status_code == 200
            for response in (
                client.get(f"/workers/{other}/info"),
                client.post(f"/workers/{other}/v1/inference", json={"prompt": "a"}),
                client.post("/v1/inference", json={"worker": other, "prompt": "a"}),
            ):
                assert (response.status_code, response.json()["code"]) == (404, "WORKER_NOT_FOUND")
    with client_of(running, "one-token") as client:
        assert client.post("/v1/inference", json={"model": "echo", "prompt": "a"}).status_code == 200


def test_a_key_has_as_many_requests_at_once_as_it_may(running: Supervisor) -> None:
    with client_of(running, "one-token") as client:
        with (
            client.stream("POST", "/workers/echo-0/v1/inference", json=SLOW) as first,
            client.stream("POST", "/workers/echo-0/v1/inference", json=SLOW) as second,
        ):
            assert (first.status_code, second.status_code) == (200, 200)
            refused = client.post("/workers/echo-0/v1/inference", json={"prompt": "a"})
            assert (refused.status_code, refused.json()["code"]) == (429, "RATE_LIMITED")
            assert refused.headers["retry-after"] == "1"
            assert client.get("/v1/workers").status_code == 200
        # Both clients are gone.
        eventually(lambda: client.post("/workers/echo-0/v1/inference", json={"prompt": "a"}).status_code == 200)


def test_a_key_has_as_many_requests_in_a_minute_as_it_may(running: Supervisor) -> None:
    with client_of(running, "two-token") as client:
        responses = [client.post("/workers/echo-1/v1/inference", json={"prompt": "a"}) for _ in range(4)]
    # The other tests may have sent some.
    assert responses[-1].status_code == 429
    assert re.fullmatch("[1-9]|[1-5][0-9]|60", responses[-1].headers["retry-after"])


def test_a_token_is_replaced_while_the_server_runs(running: Supervisor) -> None:
    file = running.folder / "one"
    try:
        file.write_text("another-token\n")
        with client_of(running, "one-token") as old, client_of(running, "another-token") as new:
            eventually(lambda: old.get("/v1/workers").status_code == 401, within_s=3)
            eventually(lambda: new.get("/v1/workers").status_code == 200, within_s=3)
    finally:
        file.write_text("one-token\n")
    with client_of(running, "one-token") as client:
        eventually(lambda: client.get("/v1/workers").status_code == 200, within_s=3)


def test_the_output_names_no_token(running: Supervisor) -> None:
    assert "-token" not in running.output()
