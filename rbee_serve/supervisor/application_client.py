"""The client of the application that the supervisor has started."""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

from rbee_serve.client import Client
from rbee_serve.config import LOCAL_HOSTS
from rbee_serve.config.tls import client_context
from rbee_serve.supervisor.checks import CheckedConfig

TIMEOUT_S = 5.0


def open_client(checked: CheckedConfig) -> Client:
    """A client of the application on this machine. To be closed by the caller."""
    return Client(
        checked.base_url,
        checked.token,
        TIMEOUT_S,
        verify=_verification(checked),
        trust_env=False,  # no proxy on the way to this machine
    )


def _verification(checked: CheckedConfig) -> ssl.SSLContext | bool:
    """How the certificate is verified, which is for the public name and not for the address in use.

    It is not verified on the loopback interface, where no other machine can receive the token. At any other address
    the server must have the very certificate of the configuration.
    """
    tls = checked.config.tls
    certificate = tls.cert_file if tls else checked.document.get("http_options", {}).get("ssl_certfile")
    if certificate is None:
        return True
    if urlsplit(checked.base_url).hostname in LOCAL_HOSTS:
        return False
    return client_context(certificate)
