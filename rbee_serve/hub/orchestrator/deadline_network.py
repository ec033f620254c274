"""Network connections that keep a deadline.

The timeouts of HTTP clients count from one byte to the next, so a server that trickles holds a caller for ever. Here
one deadline covers everything: looking up the name, connecting (to all addresses of the name together), TLS, writing
and reading.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

import httpcore


class Deadline:
    """A moment `seconds` from now."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left(self, error: type[httpcore.TimeoutException]) -> float:
        """Seconds that are left. Raises `error` where there are none."""
        if (seconds := self._at - time.monotonic()) <= 0:
            raise error("the deadline has passed")
        return seconds


class Resolver:
    """Turns a name into addresses without waiting past a deadline.

    A lookup cannot be interrupted, so it runs in a thread of its own: never more than one at a time, because a lookup
    that is late serves the next call. Not to be shared between threads.
    """

    def __init__(self) -> None:
        self._lookup: tuple[tuple[str, int], Future[list[str]]] | None = None

    def addresses(self, host: str, port: int, deadline: Deadline) -> list[str]:
        """All addresses of `host`, the preferred one first. Raises `httpcore.ConnectTimeout` or `ConnectError`."""
        if self._lookup is None or self._lookup[0] != (host, port):
            self._lookup = (host, port), self._start(host, port)
        lookup = self._lookup[1]
        try:
            found = lookup.result(deadline.left(httpcore.ConnectTimeout))
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"looking up {host} takes too long") from None
        except (OSError, UnicodeError) as exc:  # a host of 300 characters is a UnicodeError
            self._lookup = None
            raise httpcore.ConnectError(f"{host} has no address") from exc
        self._lookup = None
        return found

    @staticmethod
    def _start(host: str, port: int) -> Future[list[str]]:
        lookup: Future[list[str]] = Future()

        def look_up() -> None:
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                lookup.set_result(list(dict.fromkeys(str(address[4][0]) for address in found)))
            except Exception as exc:
                lookup.set_exception(exc)

        threading.Thread(target=look_up, name="look-up", daemon=True).start()
        return lookup


class DeadlineBackend(httpcore.NetworkBackend):
    """Opens connections on which everything has to be done by `deadline`."""

    def __init__(self, resolver: Resolver, deadline: Deadline) -> None:
        self._resolver = resolver
        self._deadline = deadline
        self._network = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """A connection to the first address of `host` that takes one."""
        addresses = self._resolver.addresses(host, port, self._deadline)
        options = list(socket_options or ())
        for remaining in range(len(addresses), 0, -1):
            # An address that swallows packets may not use up the time of those that come after it.
            share = self._deadline.left(httpcore.ConnectTimeout) / remaining
            try:
                stream = self._network.connect_tcp(addresses[-remaining], port, share, local_address, options)
                return _DeadlineStream(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if remaining == 1:
                    raise
        raise httpcore.ConnectError(f"{host} has no address")


class _DeadlineStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left(httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.left(httpcore.WriteTimeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            left = self._deadline.left(httpcore.ConnectTimeout)
        except httpcore.ConnectTimeout:
            self.close()  # whoever calls this counts on it
            raise
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
