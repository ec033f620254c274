"""The ingress's own listener, for a Serve without proxies: one hop less to a worker."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from pathlib import Path
from time import monotonic
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from rbee_serve.config import LimitsConfig, TlsConfig
from rbee_serve.config.tls import context_of_files
from rbee_serve.ingress.cors import Cors
from rbee_serve.ingress.http_server.acceptor import Acceptor
from rbee_serve.ingress.http_server.certificate import ServedCertificate
from rbee_serve.ingress.http_server.connection import Connection
from rbee_serve.ingress.http_server.file_limit import allowed_connections
from rbee_serve.ingress.http_server.shared import Shared

logger = logging.getLogger(__name__)

BACKLOG = 2048
MAX_UNSENT_BYTES = 128 * 1024
"""Output of a connection that the kernel keeps before it is on its way; it would take megabytes for a client that does
not read."""
SWEEP_S = 1.0
SETTLE_S = 0.05
"""Before idle connections are closed: a request that is here already is read and served, instead of being reset."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where and how to listen: the `http_options` of Ray Serve that concern it."""

    host: str
    port: int
    root_path: str = ""
    keep_alive_timeout_s: int = 90
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile_password: str | None = None
    ssl_ca_certs: str | None = None


class Listener:
    """Serves an application at an address, in the running event loop.

    Several replicas of the ingress share the port, and the kernel passes each connection to one of them. So a replica
    can start before the one that it replaces has stopped.
    """

    def __init__(
        self,
        app: ASGIApp,
        address: Address,
        limits: LimitsConfig | None = None,
        tls: TlsConfig | None = None,
        cors: Cors | None = None,
    ) -> None:
        """`cors`: the pages that may read the responses of the listener itself.

        Raises `OSError` if nothing can listen there, and `ConfigurationError` for a certificate that cannot be served.
        """
        limits = limits or LimitsConfig()
        config = uvicorn.Config(
            app, root_path=address.root_path, lifespan="off", ws="none", access_log=False, log_config=None
        )
        config.load()
        loop = asyncio.get_running_loop()
        self._certificate = _certificate(address, tls)
        max_connections = allowed_connections(limits.max_connections)
        self._shared = Shared(limits, address.keep_alive_timeout_s, max_connections, loop, cors or Cors())
        self._acceptor = Acceptor(
            _bound(address),
            partial(_connection, config, self._shared),
            max_connections,
            limits.header_timeout_s,
            self._certificate.context if self._certificate else lambda: None,
        )
        self._shared.clock.interval_s = min(SWEEP_S, limits.header_timeout_s / 4)
        self._sweeping = loop.create_task(self._sweep())

    async def close(self, timeout_s: float) -> None:
        """Accept no more connections and wait for open requests, at most `timeout_s` seconds."""
        state, self._shared.stopping = self._shared.state, True
        self._acceptor.close()
        await asyncio.sleep(min(SETTLE_S, timeout_s))
        for connection in list(state.connections):
            connection.shutdown()
        await self._acceptor.wait_until_none(timeout_s)
        self._acceptor.abort()
        if tasks := set(state.tasks):
            await asyncio.wait(tasks, timeout=1)
        self._sweeping.cancel()

    async def _sweep(self) -> None:
        shared = self._shared
        while True:
            shared.clock.now = monotonic()
            shared.state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
            for connection in list(shared.state.connections):
                with _logged():
                    cast(Connection, connection).check()
            shared.refusals.flush()
            if self._certificate is not None:
                with _logged():
                    self._certificate.refresh()
            await asyncio.sleep(shared.clock.interval_s)


@contextmanager
def _logged() -> Iterator[None]:
    """A fault in one thing does not end the time limits of all connections."""
    try:
        yield
    except Exception:
        logger.exception("the time limits of connections go on after a fault")


def _certificate(address: Address, tls: TlsConfig | None) -> ServedCertificate | None:
    if tls is not None:
        return ServedCertificate([tls.cert_file.expanduser(), tls.key_file.expanduser()], tls.context)
    if address.ssl_certfile is None:
        return None
    cert, key, password, ca = (
        address.ssl_certfile,
        address.ssl_keyfile,
        address.ssl_keyfile_password,
        address.ssl_ca_certs,
    )
    files = [Path(file) for file in (cert, key) if file is not None]
    return ServedCertificate(files, partial(context_of_files, cert, key, password, ca))


def _connection(
    config: uvicorn.Config, shared: Shared, surplus: bool, release: Callable[[Connection], None]
) -> Connection:
    return Connection(config, shared, surplus, release)


def _bound(address: Address) -> socket.socket:
    family, kind, protocol, _, address_info = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)  # of its connections
        listening.bind(address_info)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    listening.setblocking(False)
    return listening
