"""A `socket.getaddrinfo` that hangs or fails on command."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

_REAL = socket.getaddrinfo


def lookup_threads() -> int:
    """DNS lookups that run in this process."""
    return sum(thread.name == "dns-lookup" for thread in threading.enumerate())


class Lookups:
    """Every name under `.example` but `nobody.example` is this machine. `hang` affects the lookups that start after
    it; `hang("a.example")` those of one name."""

    def __init__(self) -> None:
        self.started = 0
        self._gates: list[threading.Event] = []
        self._hanging: tuple[str | None, bool, threading.Event] | None = None

    def hang(self, host: str | None = None, fails: bool = False) -> None:
        """Lookups that start from now on hang until `release`, and then succeed or fail."""
        gate = threading.Event()
        self._gates.append(gate)
        self._hanging = host, fails, gate

    def recover(self) -> Callable[[], None]:
        """New lookups succeed at once; those that hang go on hanging. Returns what ends the ones of the last `hang`."""
        self._hanging = None
        return self._gates[-1].set if self._gates else lambda: None

    def release(self) -> None:
        """End every lookup that hangs."""
        self._hanging = None
        for gate in self._gates:
            gate.set()

    def getaddrinfo(self, host: Any, port: Any, *arguments: Any, **options: Any) -> list[Any]:
        """In place of `socket.getaddrinfo`."""
        name = host.decode() if isinstance(host, bytes) else str(host)
        hanging = self._hanging
        if not name.endswith(".example"):
            return _REAL(host, port, *arguments, **options)
        self.started += 1
        if hanging and hanging[0] in (None, name):
            hanging[2].wait(60)
        if name == "nobody.example" or (hanging and hanging[0] in (None, name) and hanging[1]):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
