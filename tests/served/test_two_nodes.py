"""An ingress on one node of a Ray cluster, and the workers on another node with an address of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from benchmarks.baselines.two_nodes import FAR
from benchmarks.processes import ProcessTree
from rbee_serve.events import End, Error, Output
from rbee_serve.grammar import check_stream
from tests.conftest import free_port, wait_until_it_answers
from tests.served.measured import measured
from tests.served.waiting import eventually

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
PORTS = range(31_000, 31_100)
"""Of the connections between the nodes."""
WORKERS = ("echo-one", "echo-two")
"""One with a single replica, and one with two, between which Ray Serve chooses."""


class TwoNodes:
    """The URL of the application, and the processes of its nodes."""

    def __init__(self, tree: ProcessTree, port: int) -> None:
        self.tree = tree
        self.url = f"http://127.0.0.1:{port}"

    def inference(self, worker_id: str) -> str:
        """The inference route of a worker."""
        return f"{self.url}/workers/{worker_id}/v1/inference"

    def ready(self) -> bool:
        """Whether all workers are ready."""
        return httpx.get(f"{self.url}/v1/ready").status_code == 200

    def node_of(self, deployment: str) -> list[psutil.Process]:
        """All processes of the node with a replica of the deployment, the raylet first."""
        for raylet in (process for process in self.tree.processes() if process.name() == "raylet"):
            children = raylet.children(recursive=True)
            if any(f":{deployment}" in " ".join(process.cmdline()) for process in children):
                return [raylet, *children]
        raise AssertionError(f"{deployment} has no process")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    folder, port = tmp_path_factory.mktemp("two-nodes"), free_port()
    config = folder / "serve_config.yaml"
    workers = [{"id": "echo-one", "type": "echo"}, {"id": "echo-two", "type": "echo", "replicas": 2}]
    application = {"name": "rbee", "args": {"workers": workers}}
    config.write_text(
        yaml.safe_dump({"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]})
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "benchmarks.baselines.two_nodes", str(config)]
    environment = {"PYTHONPATH": str(ROOT), "RBEE_SERVE_PORTS": f"{PORTS[0]}-{PORTS[-1]}"}
    tree = ProcessTree(command, {**inherited, **environment}, folder / "log")
    try:
        running = TwoNodes(tree, port)
        wait_until_it_answers(f"{running.url}/v1/ready", 90)
        yield running
    finally:
        tree.end()


def test_the_ingress_reaches_the_workers_at_the_address_of_their_node(nodes: TwoNodes) -> None:
    assert nodes.node_of("ingress")[0] != nodes.node_of("echo-one")[0]
    assert httpx.post(nodes.inference("echo-one"), json={"prompt": "hello"}).status_code == 200
    ingress = next(process for process in nodes.node_of("ingress") if ":ingress" in " ".join(process.cmdline()))
    [replica] = [process for process in nodes.node_of("echo-one") if ":echo-one" in " ".join(process.cmdline())]
    listening = {c.laddr for c in replica.net_connections() if c.status == "LISTEN" and c.laddr.ip == FAR}
    [address] = listening & {c.raddr for c in ingress.net_connections() if c.status == "ESTABLISHED"}
    assert address.port in PORTS


def test_an_ingress_that_is_killed_comes_back_on_its_node_and_at_its_address(nodes: TwoNodes) -> None:
    head = nodes.node_of("ingress")[0]
    for _ in range(3):
        [killed] = [p for p in nodes.node_of("ingress") if ":ingress" in " ".join(p.cmdline())]
        killed.kill()
        started_at = time.monotonic()
        eventually(lambda: is_up(nodes), 60)
        measured("ingress killed", "its address answers again", time.monotonic() - started_at, 15)
        assert nodes.node_of("ingress")[0] == head


def is_up(nodes: TwoNodes) -> bool:
    """Whether an ingress answers and knows the workers."""
    try:
        return nodes.ready()
    except httpx.HTTPError:
        return False


def test_a_replica_names_the_machine_whose_devices_it_lists(nodes: TwoNodes) -> None:
    workers = httpx.get(f"{nodes.url}/v1/workers").json()["workers"]
    assert [replica["node"] for worker in workers for replica in worker["replicas"]] == [FAR] * 3


@pytest.mark.parametrize("worker_id", WORKERS)
async def test_streams_from_another_node_are_complete_and_in_order(nodes: TwoNodes, worker_id: str) -> None:
    async with httpx.AsyncClient(timeout=30) as client:
        requests = [
            client.post(nodes.inference(worker_id), json={"prompt": f"stream {n}", "repeat": 250}) for n in range(8)
        ]
        responses = await asyncio.gather(*requests)
    for n, response in enumerate(responses):
        events = check_stream(response.content)
        assert "".join(event.value.t for event in events if isinstance(event, Output)) == f"stream {n}" * 250
        assert isinstance(events[-1], End)


@pytest.mark.parametrize("worker_id", WORKERS)
def test_a_large_result_from_another_node_is_complete(nodes: TwoNodes, worker_id: str) -> None:
    body = {"prompt": "word " * 6000, "repeat": 20, "stream": False}
    response = httpx.post(nodes.inference(worker_id), json=body, timeout=30)
    assert response.json()["text"] == "word " * 120_000


@pytest.mark.parametrize("worker_id", WORKERS)
def test_a_refusal_from_another_node_keeps_its_status(nodes: TwoNodes, worker_id: str) -> None:
    refused = httpx.post(nodes.inference(worker_id), json={"prompt": "x", "delay_s": 5, "timeout_s": 0.1})
    assert (refused.status_code, refused.json()["code"]) == (408, "INFERENCE_TIMEOUT")


async def test_the_death_of_a_node_ends_its_streams_with_an_error_and_another_replaces_it(nodes: TwoNodes) -> None:
    body = {"prompt": "word", "repeat": 1000, "tokens_per_sec": 20}
    async with httpx.AsyncClient(timeout=30) as client:
        streams = [asyncio.create_task(client.post(nodes.inference(worker_id), json=body)) for worker_id in WORKERS]
        await asyncio.sleep(1)
        for process in await asyncio.to_thread(nodes.node_of, "echo-one"):
            process.kill()
        started_at = time.monotonic()
        for response in await asyncio.gather(*streams):
            events = check_stream(response.content)
            assert isinstance(events[-1], Error)
            assert (events[-1].code, events[-1].retriable) == ("WORKER_LOST", True)
        measured("node killed", "streams of both workers end with WORKER_LOST", time.monotonic() - started_at, 2)
        for worker_id in WORKERS:
            started_at = time.monotonic()
            refused = await client.post(nodes.inference(worker_id), json={"prompt": "x"})
            assert refused.status_code == 503, refused.text
            assert refused.json()["code"] in ("WORKER_LOST", "WORKER_LOADING")
            measured("node killed", f"a new request to {worker_id} is refused", time.monotonic() - started_at, 1)
        await asyncio.to_thread(eventually, lambda: not nodes.ready(), 10)
        nodes.tree.processes()[0].send_signal(signal.SIGUSR1)
        await asyncio.to_thread(eventually, nodes.ready, 60)
        for worker_id in WORKERS:
            response = await client.post(nodes.inference(worker_id), json={"prompt": "one two", "stream": False})
            assert response.json()["text"] == "one two"
