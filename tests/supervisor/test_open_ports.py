"""What a stranger on the network reaches: every listener of the supervisor's processes that is not on the loopback."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import psutil
import pytest

from tests.conftest import ECHO
from tests.supervised import supervisor

METHODS = (
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.serve.ASGIService/HandleRequest",
)
"""A method of each service that Ray's processes have: a task, the state of a node, objects, stacks, a request."""


def listeners(pid: int) -> Iterator[tuple[str, int]]:
    """The name of the process and the port of each listener that other machines reach."""
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and not is_loopback(connection.laddr.ip):
                yield process.cmdline()[0], connection.laddr.port


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return ip.is_loopback or bool(getattr(ip, "ipv4_mapped", None) and ip.ipv4_mapped.is_loopback)  # type: ignore[union-attr]


def own_address() -> str:
    """The address of this machine on its network; the loopback if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def responses(host: str, port: int) -> set[str]:
    """How the listener responds to a call of each method, and to an HTTP request where it does not speak gRPC. Nobody
    gives it a token."""
    found = set()
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        for method in METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=10)
                found.add("OK")
            except grpc.RpcError as exc:
                found.add(exc.code().name)
    if found == {"UNAVAILABLE"}:
        found = {str(httpx.get(f"http://{host}:{port}/", timeout=10).status_code)}
    return found - {"UNIMPLEMENTED"}


@pytest.mark.ray
def test_ports_on_all_interfaces_serve_nobody_without_the_token_of_ray(tmp_path: Path) -> None:
    with supervisor(tmp_path, [{"id": "echo-0", **ECHO}]) as running:
        running.until("Ctrl+C stops it")
        host = own_address()
        found = {(name, port): responses(host, port) for name, port in listeners(running.process.pid)}
    assert not any(port == running.port for _, port in found), "our own listener is on the loopback"
    assert found, "Ray listens on all interfaces"
    assert {key: codes for key, codes in found.items() if codes not in ({"UNAUTHENTICATED"}, {"401"})} == {}
