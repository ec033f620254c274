"""`tls:`"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rbee_serve.config.base import ConfigModel
from rbee_serve.errors import ConfigurationError

EXPIRED, NOT_YET_VALID = 10, 9
"""OpenSSL's codes X509_V_ERR_CERT_HAS_EXPIRED and X509_V_ERR_CERT_NOT_YET_VALID."""


class TlsConfig(ConfigModel):
    """The certificate of the ingress's own listener. Both files are PEM; renewed files are used without a restart."""

    cert_file: Path
    """The certificate, followed by the certificates that lead to its CA."""
    key_file: Path
    """Its private key, without a passphrase."""

    def context(self) -> ssl.SSLContext:
        """A server's context with the certificate: TLS 1.2 or later. Raises `ConfigurationError` if no client could
        accept it."""
        for key, path, kind in (("cert_file", self.cert_file, "CERTIFICATE"), ("key_file", self.key_file, "KEY")):
            _check_pem(f"tls.{key}", path, kind)
        context = server_context()
        try:
            context.load_cert_chain(self.cert_file.expanduser(), self.key_file.expanduser(), _no_passphrase)
        except _Encrypted:
            raise ConfigurationError(f"tls.key_file: {self.key_file} has a passphrase; store the key without") from None
        except ssl.SSLError as exc:
            if exc.reason == "KEY_VALUES_MISMATCH":
                sentence = f"tls.key_file: {self.key_file} is not the key of the certificate in {self.cert_file}"
            elif exc.reason in ("EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
                sentence = f"tls.cert_file: {self.cert_file} is too weak for OpenSSL; use RSA of 2048 bits or EC"
            else:
                sentence = f"tls.cert_file: {self.cert_file} and {self.key_file} are not a PEM certificate and its key"
            raise ConfigurationError(sentence) from None
        except OSError as exc:  # it was removed just now
            raise ConfigurationError(f"tls: {self.cert_file} or {self.key_file}: {exc.strerror}") from None
        _check_validity(context, self.cert_file)
        return context


def server_context() -> ssl.SSLContext:
    """A context of a server for HTTP/1.1 over TLS 1.2 or later, without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


class PinnedContext(ssl.SSLContext):
    """A context of a client that accepts the certificate in a file, whatever name it is for, and no other. To be made
    by `client_context`."""

    cert_file: Path

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """As ever, with the certificate that is in the file now."""
        self.load_verify_locations(self.cert_file)
        return super().wrap_socket(*args, **kwargs)


def client_context(cert_file: str | Path) -> PinnedContext:
    """A context that accepts the certificate in that file. Raises `OSError` if it cannot be read."""
    context = PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.cert_file = Path(cert_file).expanduser()
    context.load_verify_locations(context.cert_file)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return context


def context_of_files(cert: str, key: str | None, password: str | None, ca: str | None) -> ssl.SSLContext:
    """A server's context with the certificate of Ray Serve's `http_options`. Raises `ConfigurationError`."""
    context = server_context()
    try:
        context.load_cert_chain(cert, key, password)
        if ca is not None:
            context.load_verify_locations(ca)
    except OSError as exc:
        reason = f": {exc.strerror}" if not isinstance(exc, ssl.SSLError) and exc.strerror else ""
        raise ConfigurationError(
            f"http_options.ssl_certfile: {cert} and ssl_keyfile are not a PEM certificate and its key{reason}"
        ) from None
    return context


class _Encrypted(Exception):
    pass


def _no_passphrase() -> str:
    raise _Encrypted


def _check_pem(key: str, path: Path, kind: str) -> None:
    try:
        content = path.expanduser().read_text(errors="replace")
    except OSError as exc:
        raise ConfigurationError(f"{key}: {path} cannot be read: {exc.strerror}") from None
    if f"{kind}-----" not in content:
        raise ConfigurationError(f"{key}: {path} has no PEM block that ends in {kind}-----")


def _check_validity(context: ssl.SSLContext, path: Path) -> None:
    """A handshake in memory with a client that trusts the certificate: it finds what every other client would."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        server = context.wrap_bio(to_server, to_client, server_side=True)
        client = client_context(path).wrap_bio(to_client, to_server)
        for end in (client, server, client):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    except ssl.SSLCertVerificationError as exc:
        if exc.verify_code == EXPIRED:
            raise ConfigurationError(f"tls.cert_file: {path} has expired; renew the certificate") from None
        if exc.verify_code == NOT_YET_VALID:
            now = datetime.now(UTC)
            sentence = f"tls.cert_file: {path} is not valid yet at {now:%Y-%m-%d %H:%M} UTC; check the clock"
            raise ConfigurationError(sentence) from None
        raise ConfigurationError(f"tls.cert_file: {path} is not a certificate of a server") from None
    except ssl.SSLError:
        raise ConfigurationError(f"tls.cert_file: {path} cannot be used for TLS 1.2 or later") from None
    except OSError as exc:  # it was removed just now
        raise ConfigurationError(f"tls.cert_file: {path} cannot be read: {exc.strerror}") from None
