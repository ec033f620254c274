"""One outbound call: a JSON message to a fixed URL, and what came of it.

Below it is httpcore, the transport of httpx, and not an `httpx.Client`: it is the layer that takes a network with a
deadline, and it follows no redirect, keeps no cookie, unpacks no body and reads no proxy from the environment.
"""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import httpcore
import httpx
import msgspec

from rbee_serve.hub.orchestrator.deadline_network import Deadline, DeadlineBackend, Resolver

MAX_ANSWER_BYTES = 64 * 1024
"""The largest body of an answer. Only its status is of interest, and a whole body proves that it was meant."""

Failure = Literal["unreachable", "timeout", "broken answer", "answer too large"]


@dataclass(frozen=True, slots=True)
class CallbackResult:
    """What came of a call: an HTTP `status`, or else the `trouble`."""

    status: int | None = None
    trouble: Failure | None = None

    @property
    def acknowledged(self) -> bool:
        """The receiver has taken the message: it answered 2xx. A redirect is no acknowledgement."""
        return self.status is not None and 200 <= self.status < 300

    def __str__(self) -> str:
        return self.trouble or f"it answered {self.status}"


class CallbackClient:
    """Makes calls, each with `timeout_s` from looking up the name to the last byte. One for each thread."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._resolver = Resolver()

    def post(self, url: str, message: Mapping[str, Any]) -> CallbackResult:
        """POST `message` as JSON. Whatever the network or the receiver does comes back as an `CallbackResult`."""
        trust = _certificates() if url.startswith("https:") else None
        backend = DeadlineBackend(self._resolver, Deadline(self._timeout_s))
        try:
            with httpcore.ConnectionPool(trust, network_backend=backend) as pool:
                return self._exchange(pool, _request(url, msgspec.json.encode(message)))
        except httpcore.TimeoutException:
            return CallbackResult(trouble="timeout")
        except (httpcore.ProtocolError, httpcore.ReadError, httpcore.WriteError):
            return CallbackResult(trouble="broken answer")
        except (httpcore.NetworkError, httpcore.UnsupportedProtocol, httpx.InvalidURL, OSError):
            return CallbackResult(trouble="unreachable")

    @staticmethod
    def _exchange(pool: httpcore.ConnectionPool, request: httpcore.Request) -> CallbackResult:
        response = pool.handle_request(request)
        try:
            received = 0
            for chunk in response.iter_stream():
                received += len(chunk)
                if received > MAX_ANSWER_BYTES:
                    return CallbackResult(trouble="answer too large")
            return CallbackResult(status=response.status)
        finally:
            response.close()


@cache
def _certificates() -> ssl.SSLContext:
    # Reading them takes a tenth of a second or more, which is not to come out of every call's time.
    return httpcore.default_ssl_context()


def _request(url: str, body: bytes) -> httpcore.Request:
    target = httpx.URL(url)
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
    if target.userinfo:
        credentials = b64encode(f"{target.username}:{target.password}".encode()).decode()
        headers["Authorization"] = f"Basic {credentials}"
    # httpx.Request brings Host and Content-Length, and a host of other alphabets in the form that travels.
    complete = httpx.Request("POST", target, headers=headers, content=body)
    return httpcore.Request(
        method=b"POST",
        url=httpcore.URL(scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path),
        headers=complete.headers.raw,
        content=body,
    )


def redacted(url: str) -> str:
    """The URL as it may stand in a log: without user, password and query."""
    try:
        parsed = httpx.URL(url)
        return f"{parsed.scheme}://{parsed.netloc.decode()}{parsed.path}"
    except httpx.InvalidURL:
        return "an invalid URL"
