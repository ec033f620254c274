"""One callback: a JSON message that is POSTed to a fixed URL, and its result."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from rbee_serve.config import OrchestratorConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.hub.orchestrator.credentials import Credentials
from rbee_serve.hub.orchestrator.message_schemas import Message, worker_id_of

MAX_RESPONSE_BYTES = 64 * 1024
"""The largest response body. Only the status matters; a complete body shows that the receiver meant it."""

Failure = Literal[
    "unreachable", "timeout", "broken response", "response too large", "untrusted certificate", "not sent"
]
"""`not sent`: the token or the CA cannot be read."""

_HEADERS = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}


@dataclass(frozen=True, slots=True)
class CallbackResult:
    """The HTTP `status` of the response, or else the `failure`, with a `detail` for the log."""

    status: int | None = None
    failure: Failure | None = None
    detail: str = ""

    @property
    def acknowledged(self) -> bool:
        """Whether the receiver has accepted the message, with 2xx. A redirect is no acknowledgement."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def refused(self) -> bool:
        """Whether the receiver wants other credentials. `CallbackClient` has logged that."""
        return self.status in (401, 403)

    def __str__(self) -> str:
        return (self.failure or f"status {self.status}") + (f" ({self.detail})" if self.detail else "")


class CallbackClient:
    """Sends callbacks. `timeout_s` of the configuration covers a whole call, from the DNS lookup to the last byte; the
    loop should be a `CallbackLoop`. No redirect is followed, no proxy is read from the environment, and no cookie or
    connection is kept.
    """

    def __init__(self, orchestrator: OrchestratorConfig) -> None:
        self._timeout_s = orchestrator.timeout_s
        self._credentials = Credentials(orchestrator)

    async def post(self, url: str, message: Message) -> CallbackResult:
        """POST `message` as JSON. Every network or receiver fault is a `CallbackResult`; nothing is raised."""
        try:
            credentials, tls = self._credentials.headers(url), self._credentials.tls()
        except ConfigurationError as exc:
            return CallbackResult(failure="not sent", detail=str(exc))
        result = await self._post(url, message, credentials, tls)
        self._credentials.log_response(url, redacted(url), worker_id_of(message), credentials, result.status)
        return result

    async def _post(
        self, url: str, message: Message, credentials: Mapping[str, str], tls: ssl.SSLContext
    ) -> CallbackResult:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(
                    url, message.model_dump_json(exclude_none=True), {**_HEADERS, **credentials}, tls
                )
        except (TimeoutError, httpx.TimeoutException):
            return CallbackResult(failure="timeout")
        except (httpx.ProtocolError, httpx.ReadError, httpx.WriteError):
            return CallbackResult(failure="broken response")
        except (httpx.TransportError, httpx.InvalidURL, OSError) as exc:
            if untrusted := _verification_error(exc):
                return CallbackResult(failure="untrusted certificate", detail=untrusted.verify_message)
            return CallbackResult(failure="unreachable")

    async def _exchange(self, url: str, body: str, headers: Mapping[str, str], tls: ssl.SSLContext) -> CallbackResult:
        streams: list[Any] = []

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            if event == "connection.connect_tcp.complete":
                streams.append(info["return_value"])

        try:
            async with (
                httpx.AsyncClient(verify=tls, trust_env=False, timeout=None, headers=headers) as client,  # noqa: S113 - `post` has one for the whole call
                client.stream("POST", url, content=body, extensions={"trace": trace}) as response,
            ):
                received = 0
                async for chunk in response.aiter_raw():
                    received += len(chunk)
                    if received > MAX_RESPONSE_BYTES:
                        return CallbackResult(failure="response too large")
                return CallbackResult(status=response.status_code)
        finally:
            for stream in streams:  # the HTTP library forgets a connection whose TLS handshake is cancelled
                await stream.aclose()


def _verification_error(exc: BaseException | None) -> ssl.SSLCertVerificationError | None:
    while exc is not None and not isinstance(exc, ssl.SSLCertVerificationError):
        exc = exc.__cause__ or exc.__context__
    return exc


def redacted(url: str) -> str:
    """The URL for a log: without user, password and query."""
    try:
        parsed = httpx.URL(url)
        return f"{parsed.scheme}://{parsed.netloc.decode()}{parsed.path}"
    except httpx.InvalidURL:
        return "an invalid URL"
