"""What a callback carries to show who sends it, and what it demands of the receiver: the bearer token and the CA."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import httpx

from rbee_serve.config import OrchestratorConfig

logger = logging.getLogger(__name__)


class Credentials:
    """The token and the certificates of an orchestrator. Both files are read again when they change."""

    def __init__(self, orchestrator: OrchestratorConfig) -> None:
        self._orchestrator = orchestrator
        self._token = orchestrator.token()
        self._certificates = orchestrator.certificates()
        self._refused: dict[str, _Refusal] = {}

    def headers(self, url: str) -> dict[str, str]:
        """`Authorization` for a URL at the origin of `callback_url`, nothing for any other. Raises
        `ConfigurationError` where the token has never been readable."""
        if self._token is None or not self._orchestrator.receives_token(url):
            return {}
        return {"Authorization": f"Bearer {self._token.current()}"}

    def tls(self) -> ssl.SSLContext:
        """Verifies certificate and host name against `ca_file`, or else the authorities of the system. Raises
        `ConfigurationError` where the file has never been readable."""
        return _context(self._certificates.current() if self._certificates else None)

    def log_response(
        self, url: str, redacted_url: str, worker_id: str, sent: Mapping[str, str], status: int | None
    ) -> None:
        """Log a 401 or 403 with the file to look at: once for all workers, until the status or the token changes.
        `redacted_url` is the URL for the log, `sent` what `headers` returned for the call."""
        refusal = self._refused.get(url)
        if status in (401, 403):
            if sent != self.headers(url):
                return  # the token has been replaced meanwhile
            if refusal is None or (refusal.status, refusal.sent) != (status, sent):
                self._refused[url] = refusal = _Refusal(status, sent)
                logger.warning(
                    "%s refuses this server with status %d; %s; calls are repeated, and this line is not",
                    redacted_url,
                    status,
                    self._advice(url),
                )
            refusal.workers.add(worker_id)
        elif refusal is not None and status is not None and status < 300:
            refusal.workers.discard(worker_id)
            if not refusal.workers:
                del self._refused[url]
                logger.warning("%s accepts this server again", redacted_url)

    def _advice(self, url: str) -> str:
        if self._token is None:
            return "if it wants a token, set orchestrator.token_file"
        if not self._orchestrator.receives_token(url):
            return "the token is sent to the origin of orchestrator.callback_url only"
        return f"look at the first line of {self._token.path} (orchestrator.token_file)"


@dataclass(slots=True)
class _Refusal:
    """What a URL has refused: the `workers` whose last call it did."""

    status: int
    sent: Mapping[str, str]
    workers: set[str] = field(default_factory=set)


@lru_cache(maxsize=2)
def _context(certificates: str | None) -> ssl.SSLContext:
    """Made once for each content: reading the system's takes a tenth of a second."""
    if certificates is not None:
        return ssl.create_default_context(cadata=certificates)
    context = httpx.create_ssl_context(trust_env=False)  # those that Mozilla trusts, for a container that has none
    context.load_default_certs()
    return context
