"""Where the internal connections listen."""

from __future__ import annotations

import psutil

from rbee_serve.transport.acceptor import Acceptor
from rbee_serve.transport.handshake import Hello


def listening() -> set[tuple[str, int]]:
    """The addresses at which this process listens."""
    sockets = psutil.Process().net_connections("inet")
    return {(s.laddr.ip, s.laddr.port) for s in sockets if s.status == psutil.CONN_LISTEN}


async def test_for_processes_of_the_same_machine_only_the_loopback_address_is_bound() -> None:
    def admit(connection: object) -> None:
        raise AssertionError

    before = listening()
    acceptor: Acceptor[Hello] = Acceptor(Hello, admit)  # type: ignore[arg-type]
    endpoint = await acceptor.endpoint("127.0.0.1")
    assert listening() - before == {("127.0.0.1", endpoint.port)}
    await acceptor.close()
