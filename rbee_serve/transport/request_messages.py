"""What an ingress and the replicas of a worker say to each other about requests.

ingress (a `Channel` for each worker)                        replica (`RequestServer`)

reach()                       ── through Ray Serve ──→       which replica: its `Endpoint`
Hello(key)                    ═══════ TCP ═══════════→       a connection, for all requests
Ask(number, fields, id)       ═══════════════════════→       work on a request
    Noted(number)             ←═══════════════════════       an acknowledgement
    Part(number, data, last)  ←═══════════════════════       what there is to say
Read(number, size)            ═══════════════════════→       the client has taken so much of it
Leave(number)                 ═══════════════════════→       it is not wanted any more
    Closing()                 ←═══════════════════════       new requests are to go to another replica
"""

from __future__ import annotations

import msgspec

from rbee_serve.transport.acceptor import Hello

ResponseChunk = tuple[bytes, bool] | tuple[bytes, bool, str]
"""Of an answer: SSE frames and whether the end is among them; or one document, True, and its content type."""

WINDOW_BYTES = 1024 * 1024
"""So far a request's client may be behind before its replica waits for it. Both sides keep that much at most, beside
the last event."""


class StartRequest(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A request: the ingress's number for it, its pickled fields, its correlation id."""

    number: int
    fields: bytes
    correlation_id: str


class WindowUpdate(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The client has taken `size` bytes more."""

    number: int
    size: int


class ResetStream(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The client has left."""

    number: int


class RequestAck(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The request has come."""

    number: int


class Chunk(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """A fragment of an answer. A document has a media type, unless it is JSON."""

    number: int
    data: bytes
    last: bool
    media_type: str = ""


class GoAway(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The replica goes when the requests that it has are done."""


FromIngress = Hello | StartRequest | WindowUpdate | ResetStream
FromReplica = RequestAck | Chunk | GoAway
