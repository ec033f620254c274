"""`limits:` of the ingress."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rbee_serve.config.base import ConfigModel


class LimitsConfig(ConfigModel):
    """Limits of the ingress for one request."""

    max_body_bytes: Annotated[int, Field(gt=0)] = 32 * 1024 * 1024
    """The largest request body."""
    body_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds in which a body must have arrived."""
    acknowledge_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    """Seconds in which a replica must acknowledge a request; after that the client gets `WORKER_LOST`."""
