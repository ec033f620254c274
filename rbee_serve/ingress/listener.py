"""The ingress's own HTTP server, for a Serve without proxies: one hop less on the way to a worker."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen, and how: Ray Serve's `http_options` in so far as they are about that."""

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

    Several replicas of the ingress share the port: the kernel hands each connection to one of them. So a replica can
    come up before the one that it replaces is gone.
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

    async def close(self, within_s: float) -> None:
        """Take no more connections and wait for open requests, at most `within_s` seconds."""
        self._server.should_exit = True
        await asyncio.wait([self._serving], timeout=within_s)
        self._server.force_exit = True  # it looks ten times a second
        await asyncio.wait([self._serving], timeout=1)


def _bound(address: Address) -> socket.socket:
    family, kind, protocol, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(place)
    except OSError:
        listening.close()
        raise
    return listening
