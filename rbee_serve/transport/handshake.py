"""The handshake of a connection: both ends prove that they hold the token of an `Endpoint`, which is never sent.

    connector                                    acceptor
    Hello(nonce)               ═══════════→
                               ←═══════════      Challenge(nonce, proof)
    Proof(proof)               ═══════════→      messages

A proof is the HMAC-SHA256, keyed with the token, of the prover's role and both nonces. A recorded proof is useless for
another connection, and that of one role for the other. The handshake authenticates; it does not encrypt.
"""

from __future__ import annotations

import hmac
import secrets

import msgspec

HANDSHAKE_BYTES = 256
"""Largest frame before the peer is authenticated."""
HANDSHAKE_S = 5.0
"""Time limit of the handshake."""
NONCE_BYTES = 32


class Endpoint(msgspec.Struct, frozen=True):
    """Address of an `Acceptor`, and the secret that its connections prove. It is passed through Ray calls only."""

    host: str
    port: int
    token: str


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The first message of a connection: the connector's nonce, `NONCE_BYTES` random bytes."""

    nonce: bytes


class Challenge(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The acceptor's nonce, and its proof."""

    nonce: bytes
    proof: bytes


class Proof(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The connector's proof."""

    proof: bytes


class Nonces(msgspec.Struct, frozen=True):
    """The nonces of one handshake, from which both proofs are made."""

    connector: bytes
    acceptor: bytes

    def acceptor_proof(self, token: str) -> bytes:
        """What `Challenge.proof` has to be."""
        return _proof(token, b"rbee-serve acceptor", self)

    def connector_proof(self, token: str) -> bytes:
        """What `Proof.proof` has to be."""
        return _proof(token, b"rbee-serve connector", self)


def new_nonce() -> bytes:
    """`NONCE_BYTES` random bytes."""
    return secrets.token_bytes(NONCE_BYTES)


def _proof(token: str, role: bytes, nonces: Nonces) -> bytes:
    return hmac.digest(token.encode(), b"\0".join((role, nonces.connector, nonces.acceptor)), "sha256")
