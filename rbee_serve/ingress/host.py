"""The names of this server in the header `Host`.

A web page whose name resolves to the loopback address (DNS rebinding) is of the same origin as the server for its
browser, which then lets it read every response. Its requests carry the page's name as `Host`, so without a token only
names that nobody else can own are accepted.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence

_HOST = re.compile(rb"(\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\]|(?!\.)[A-Za-z0-9._-]{1,255})(?::([0-9]{0,5}))?")
_NUMBERS = re.compile(r"[0-9a-fx.]+")
_USUAL = frozenset({"localhost", "127.0.0.1", "::1"})


def host_name(value: bytes) -> str | None:
    """The name or address in a `Host` header, in lower case, without port, brackets and the dot at its end. None if it
    is malformed."""
    match = _HOST.fullmatch(value)
    if match is None or int(match[2] or 0) > 65_535:
        return None
    name = match[1].decode().lower()
    return name[1:-1] if name[0] == "[" else name.removesuffix(".")


def is_loopback(name: str) -> bool:
    """Whether a name from `host_name` always means the machine itself: `localhost` and names below it (RFC 6761),
    127.0.0.0/8 in each notation of an address, `::1`."""
    return name in _USUAL or name.endswith(".localhost") or _is_loopback_address(name)


def _is_loopback_address(name: str) -> bool:
    try:
        if ":" in name:
            address = ipaddress.IPv6Address(name)
            return address.is_loopback or (address.ipv4_mapped is not None and address.ipv4_mapped.is_loopback)
        return _NUMBERS.fullmatch(name) is not None and socket.inet_aton(name)[0] == 127
    except (OSError, ValueError):
        return False


class LocalHosts:
    """What is accepted as `Host` without a token: loopback names with any port, and the host of `public_url`."""

    def __init__(self, public_host: str | None) -> None:
        self._public_host = public_host.lower().removesuffix(".") if public_host else None

    def accepts(self, values: Sequence[bytes], http_version: str) -> bool:
        """Whether a request with these `Host` headers is for this server. Only HTTP/1.0 has requests without one; no
        browser sends those."""
        if len(values) != 1:
            return not values and http_version == "1.0"
        name = host_name(values[0])
        return name is not None and (name == self._public_host or is_loopback(name))
