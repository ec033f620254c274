"""`orchestrator:`"""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field

from rbee_serve.config.base import ConfigModel
from rbee_serve.config.secret_file import WatchedFile, read_file, read_token
from rbee_serve.config.sentences import EXPECTED
from rbee_serve.errors import ConfigurationError

Origin = tuple[str, str, int | None]
"""Scheme, host and port."""

MAX_CA_BYTES = 4 * 1024 * 1024
"""The largest file of certificates. A system's own has a tenth of that."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_TOKEN, _CA = "orchestrator.token_file", "orchestrator.ca_file"

_Url = Annotated[
    str,
    Field(
        pattern=r"^https?://[^\s/]+(/\S*)?$",
        json_schema_extra={EXPECTED: "a URL such as http://hive:9200/v1/workers/ready"},
    ),
]


class OrchestratorConfig(ConfigModel):
    """The orchestrator that is notified of workers that are ready, and receives their heartbeats."""

    callback_url: _Url
    """Where the ready callback is POSTed, such as `http://hive:9200/v1/workers/ready`. For `protocol: queen` its
    origin is where heartbeats go too."""
    protocol: Literal["hive", "queen"] = "hive"
    """`hive`: heartbeats to `/v1/heartbeat` with the worker's id. `queen`: to `/v1/worker-heartbeat` with all of
    `/info`."""
    token_file: Path | None = None
    """A file whose first line is sent as the bearer token, to the origin of `callback_url` only. It is read again when
    it changes."""
    ca_file: Path | None = None
    """Certificates (PEM) of the authorities that sign the orchestrator's certificate. The system's if left out."""
    heartbeat_interval_s: Annotated[float, Field(gt=0, le=80)] = 30.0
    """Seconds between heartbeats. Receivers drop a worker after 90 s without one."""
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 5.0
    """Deadline of one call in seconds, from the DNS lookup to the last byte."""
    ready_backoff_max_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    """The longest pause between two attempts of the ready callback. The first is 0.5 s, each next one is doubled."""
    on_error_url: _Url | None = None
    """Where a load that failed for good is reported. It is never sent to the ready URL."""

    def token(self) -> WatchedFile[str] | None:
        """The token, as its file has it now; None where none is configured."""
        return WatchedFile(self.token_file, _read_token) if self.token_file else None

    def certificates(self) -> WatchedFile[str] | None:
        """The text of `ca_file`, as it is now; None where the system's authorities count."""
        return WatchedFile(self.ca_file, _read_certificates) if self.ca_file else None

    def check(self) -> None:
        """Raise `ConfigurationError`, a line for each fault, where a file is not usable or the settings contradict."""
        faults = [
            f"orchestrator.{key}: cannot be read as a URL; write one such as http://hive:9200/v1/workers/ready"
            for key, url in self._urls()
            if origin_of(url) is None
        ]
        for file in (self.token(), self.certificates()):
            try:
                if file is not None:
                    file.current()
            except ConfigurationError as exc:
                faults.append(str(exc))
        own = [key for key, url in self._urls() if self.receives_token(url) and "@" in url]
        if own:
            faults.append(f"{_TOKEN}: orchestrator.{own[0]} has a user or a password too; remove the one or the other")
        if self.ca_file and all(url.startswith("http:") for _, url in self._urls()):
            faults.append(f"{_CA}: no URL of the orchestrator begins with https; change the URL, or remove the key")
        if faults:
            raise ConfigurationError("\n".join(faults))

    def warnings(self) -> list[str]:
        """What an operator should know although it is allowed, a sentence each."""
        scheme, host, _ = origin_of(self.callback_url) or ("", "", None)
        if self.token_file is None or scheme != "http" or _is_loopback(host):
            return []
        sentence = f"{_TOKEN}: the token is sent to {host} over plain http, where others on the network can read it"
        return [f"{sentence}; use https in orchestrator.callback_url"]

    def receives_token(self, url: str) -> bool:
        """Whether the token is sent to `url`: it is at the origin of `callback_url`."""
        return (
            self.token_file is not None and (own := origin_of(self.callback_url)) is not None and own == origin_of(url)
        )

    def _urls(self) -> list[tuple[str, str]]:
        urls = {"callback_url": self.callback_url, "on_error_url": self.on_error_url}
        return [(key, url) for key, url in urls.items() if url]


def origin_of(url: str) -> Origin | None:
    """The origin of a URL; None where it cannot be read as one."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname:
        return None
    return parts.scheme, parts.hostname, _DEFAULT_PORTS.get(parts.scheme) if port is None else port


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _read_token(path: Path) -> str:
    """Raises `ConfigurationError` for a token that a header cannot carry, too."""
    try:
        token = read_token(path)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{_TOKEN}: {exc}") from exc
    if not all(0x21 <= byte <= 0x7E for byte in token):
        raise ConfigurationError(
            f"{_TOKEN}: the first line of {path} has blanks or characters other than ASCII; a header cannot carry them"
        )
    return token.decode("ascii")


def _read_certificates(path: Path) -> str:
    try:
        text = read_file(path, MAX_CA_BYTES).decode("ascii", "ignore")  # a comment may have any letters
    except ConfigurationError as exc:
        raise ConfigurationError(f"{_CA}: {exc}") from exc
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as exc:
        raise ConfigurationError(
            f"{_CA}: {path} has no certificate in PEM form that can be read; it begins with BEGIN CERTIFICATE"
        ) from exc
    return text
