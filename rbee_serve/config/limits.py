"""`limits:` of the ingress."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rbee_serve.config.base import ConfigModel


class LimitsConfig(ConfigModel):
    """Limits of the ingress for one request and for its connections."""

    max_header_bytes: Annotated[int, Field(ge=4096, le=1024 * 1024)] = 64 * 1024
    """The largest request line and headers, together."""
    header_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds in which the request line and headers must have arrived, and before them the TLS handshake."""
    max_body_bytes: Annotated[int, Field(gt=0)] = 32 * 1024 * 1024
    """The largest request body."""
    body_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds in which a body must have arrived, beside the time that it takes at `min_body_bytes_per_s`."""
    min_body_bytes_per_s: Annotated[int, Field(gt=0)] = 16 * 1024
    """The slowest upload: each of so many bytes that have arrived gives a body one second more."""
    max_connections: Annotated[int, Field(gt=0)] | None = None
    """Connections that clients may have open to an ingress replica; 10,000 if left out. Never more than its limit on
    open files allows."""
    acknowledge_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    """Seconds in which a replica must acknowledge a request; after that the client gets `WORKER_LOST`."""
