"""Messages about requests, between an ingress and the replicas of a worker. Names are those of HTTP/2.

ingress (a `Channel` for each worker)                                 replica (`RequestServer`)

reach()                                     ── through Ray Serve ──→  which replica: its `Endpoint`
handshake                                   ←═══════ TCP ═══════════→ one connection for all requests
StartRequest(stream_id, fields, id)         ════════════════════════→ starts the work on a request
    RequestAck(stream_id)                   ←════════════════════════ the request has arrived
    Chunk(stream_id, data, end_of_stream)   ←════════════════════════ part of the response
WindowUpdate(stream_id, size)               ════════════════════════→ the client has taken so many bytes
ResetStream(stream_id)                      ════════════════════════→ cancels the request
    GoAway()                                ←════════════════════════ new requests have to go to another replica
"""

from __future__ import annotations

from typing import Any

import msgspec

ResponseChunk = tuple[bytes, bool] | tuple[bytes, bool, str]
"""Part of a response: SSE frames and whether they end the stream; or one document, True, and its content type."""

WINDOW_BYTES = 1024 * 1024
"""Bytes that a client may be behind before its replica pauses. Each side buffers at most that, and the last event."""


class StartRequest(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A request: its stream, its fields as plain data, its correlation id."""

    stream_id: int
    fields: dict[str, Any]
    correlation_id: str


class WindowUpdate(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The client has taken `size` more bytes."""

    stream_id: int
    size: int


class ResetStream(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The request is cancelled, by a disconnect or because its time is over."""

    stream_id: int


class RequestAck(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The request has arrived."""

    stream_id: int


class Chunk(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """A `ResponseChunk`. A document has a media type, unless it is JSON."""

    stream_id: int
    data: bytes
    end_of_stream: bool
    media_type: str = ""


class GoAway(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The replica finishes the requests that it has and exits."""


FromIngress = StartRequest | WindowUpdate | ResetStream
FromReplica = RequestAck | Chunk | GoAway
