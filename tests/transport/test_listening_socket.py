"""Where an acceptor listens: the port, and the address behind a NAT."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from rbee_serve.port_range import ANY_PORT
from rbee_serve.transport.listening_socket import listening_socket
from tests.conftest import free_port

HOST, OTHER = "127.0.0.1", "127.0.0.2"
FOREIGN = "192.0.2.1"
"""Reserved for documentation, so of no interface."""


@pytest.fixture
def ports() -> range:
    """Three neighbouring ports that are free."""
    while True:
        first = free_port()
        try:
            with ExitStack() as probes:
                for port in range(first, first + 3):
                    probes.enter_context(socket.socket()).bind(("", port))
            return range(first, first + 3)
        except OSError:
            continue


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Sockets that are closed at the end."""
    with ExitStack() as stack:
        yield stack


def port_of(listening: socket.socket) -> int:
    port: int = listening.getsockname()[1]
    return port


def test_the_ports_of_a_range_are_taken_in_turn(ports: range, opened: ExitStack) -> None:
    taken = [port_of(opened.enter_context(listening_socket(HOST, ports))) for _ in ports]
    assert taken == list(ports)


def test_a_port_that_another_program_has_is_passed_over_and_one_that_is_free_again_is_used(
    ports: range, opened: ExitStack
) -> None:
    other = opened.enter_context(socket.create_server((HOST, ports[0])))
    assert port_of(opened.enter_context(listening_socket(HOST, ports))) == ports[1]
    other.close()
    assert port_of(opened.enter_context(listening_socket(HOST, ports))) == ports[0]


def test_an_exhausted_range_is_one_sentence_with_the_range_and_the_address(ports: range, opened: ExitStack) -> None:
    for _ in ports:
        opened.enter_context(listening_socket(HOST, ports))
    with pytest.raises(OSError, match="taken") as refused:
        listening_socket(HOST, ports)
    assert str(refused.value) == (
        f"every port of RBEE_SERVE_PORTS={ports[0]}-{ports[2]} at {HOST} is taken; set a wider range: each replica on "
        "this node needs one, and so does the hub"
    )


def test_each_address_has_ports_of_its_own(ports: range, opened: ExitStack) -> None:
    assert port_of(opened.enter_context(listening_socket(HOST, ports))) == ports[0]
    assert port_of(opened.enter_context(listening_socket(OTHER, ports))) == ports[0]


def test_an_address_of_no_interface_is_served_on_all_of_them(ports: range, opened: ExitStack) -> None:
    listening = opened.enter_context(listening_socket(FOREIGN, ports))
    assert listening.getsockname() == ("0.0.0.0", ports[0])
    with socket.create_connection((OTHER, ports[0]), 1):
        pass
    assert port_of(opened.enter_context(listening_socket(FOREIGN, ports))) == ports[1]


def test_without_a_range_any_port_is_taken(opened: ExitStack) -> None:
    first, second = (opened.enter_context(listening_socket(HOST, ANY_PORT)) for _ in range(2))
    assert port_of(first) != port_of(second)
    assert first.getsockname()[0] == HOST
