"""The parts that both clients share: their options, the arguments of a request, and the mapping of errors."""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from rbee_serve.client.calls import Call
from rbee_serve.errors import InferenceTimeout, WorkerLost
from rbee_serve.outputs import OutputValue


@contextmanager
def translated() -> Iterator[None]:
    """Raises httpx's exceptions as those of rbee-serve."""
    try:
        yield
    except httpx.TimeoutException as exc:
        raise InferenceTimeout("the server did not respond in time") from exc
    except httpx.TransportError as exc:
        raise WorkerLost("the connection to the server failed") from exc


class BaseClient(ABC):
    """The options of both clients.

    `timeout` is the longest silence in seconds, also within a stream, where the server sends something at least every
    10 s; only `infer` and `infer_file` have no read timeout, as the server is silent until the result is complete.
    `outputs` are the output classes to expect beside `TokenOutput`. `verify` and `trust_env` are those of httpx: how a
    TLS certificate is verified, and whether proxies are read from the environment.
    """

    def __init__(
        self,
        base_url: str,
        token: str | bytes | None = None,
        timeout: float = 30.0,
        outputs: Sequence[type[OutputValue]] = (),
        *,
        verify: ssl.SSLContext | bool = True,
        trust_env: bool = True,
    ) -> None:
        self._outputs = tuple(outputs)
        self._timeout = timeout
        token = token.encode() if isinstance(token, str) else token
        headers = {} if token is None else {b"Authorization": b"Bearer " + token}
        self._open(base_url=base_url, headers=headers, verify=verify, trust_env=trust_env)

    @abstractmethod
    def _open(self, **options: Any) -> None: ...

    def _arguments(self, call: Call[Any]) -> dict[str, Any]:
        return {
            "method": call.method,
            "url": call.path,
            "content": call.body,
            "headers": {} if call.body is None else {"Content-Type": "application/json"},
            "timeout": httpx.Timeout(self._timeout, read=None) if call.no_read_timeout else self._timeout,
        }
