"""The socket of an acceptor: the first free port of a range, at an address of this machine."""

from __future__ import annotations

import errno
import logging
import socket

from rbee_serve.port_range import VARIABLE

logger = logging.getLogger(__name__)

BACKLOG = 100
"""Connections that wait to be accepted; asyncio's default."""


def listening_socket(host: str, ports: range) -> socket.socket:
    """A socket that listens at `host`, at the first port of `ports` that is free.

    If no interface of this machine has the address, as behind a NAT, it listens on all of them: whoever connects has to
    prove the token. Raises `OSError`, whose text is a sentence where the range is exhausted.
    """
    try:
        return _first_free(host, ports)
    except OSError as exc:
        if exc.errno != errno.EADDRNOTAVAIL:
            raise
    logger.info("no interface of this machine has the address %s: connections to it are accepted on all of them", host)
    return _first_free("::" if ":" in host else "0.0.0.0", ports)


def _first_free(host: str, ports: range) -> socket.socket:
    for port in ports:
        try:
            return _bound(host, port)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
    raise OSError(
        f"every port of {VARIABLE}={ports[0]}-{ports[-1]} at {host} is taken; set a wider range: each replica on this "
        "node needs one, and so does the hub"
    )


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY on connections whose socket names its protocol, and on no others.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening
