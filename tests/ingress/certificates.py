"""Certificates that a test makes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)


def make_certificate(
    folder: Path, name: str = "server", days: int = 2, passphrase: bytes | None = None
) -> dict[str, str]:
    """A self-signed certificate for localhost and its key, as the values of `tls:`. With `days` below 0 it expired
    that long ago, from 100 on it is valid later."""
    cert, key_file = folder / f"{name}.pem", folder / f"{name}.key"
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))])
    now = datetime.now(UTC)
    begin = now + timedelta(days=days - 1 if days >= 100 else -10)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begin)
    built = builder.not_valid_after(now + timedelta(days=days)).add_extension(names, critical=False)
    cert.write_bytes(built.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    encryption: KeySerializationEncryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return {"cert_file": str(cert), "key_file": str(key_file)}
