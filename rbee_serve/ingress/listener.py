"""The ingress's own HTTP server, for a Serve without proxies: one hop less to a worker."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp


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

    def __init__(self, app: ASGIApp, address: Address) -> None:
        """Raises `OSError` if nothing can listen there."""
        config = uvicorn.Config(
            app,
            root_path=address.root_path,
            timeout_keep_alive=address.keep_alive_timeout_s,
            ssl_keyfile=address.ssl_keyfile,
            ssl_certfile=address.ssl_certfile,
            ssl_keyfile_password=address.ssl_keyfile_password,
            ssl_ca_certs=address.ssl_ca_certs,
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        self._serving = asyncio.get_running_loop().create_task(self._server.serve(sockets=[_bound(address)]))

    async def close(self, timeout_s: float) -> None:
        """Accept no more connections and wait for open requests, at most `timeout_s` seconds."""
        self._server.should_exit = True
        await asyncio.wait([self._serving], timeout=timeout_s)
        self._server.force_exit = True  # uvicorn checks it ten times a second
        await asyncio.wait([self._serving], timeout=1)


def _bound(address: Address) -> socket.socket:
    family, kind, protocol, _, address_info = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(address_info)
    except OSError:
        listening.close()
        raise
    return listening
