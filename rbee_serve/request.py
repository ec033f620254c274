"""The base class of all requests."""

from __future__ import annotations

import secrets
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


def new_id(prefix: str) -> str:
    """A new identifier such as `job-3f9c2a7b1d04e865`."""
    return f"{prefix}-{secrets.token_hex(8)}"


class InferenceRequest(BaseModel):
    """Base of all requests: strict types, no unknown fields, no NaN or infinity.

    A worker type subclasses it with its own fields. Every number has a lower and an upper bound, every text and list a
    largest length. A field whose value is content (a prompt, an image) is declared with `Field(repr=False)`, so that it
    never appears in an error or a log. Rules across fields are pydantic validators.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    stream: bool = True
    """True: events as they are produced. False: one JSON result."""
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] | None = None
    """Seconds from arrival until the request must be done. It can only lower the limit of the worker."""
    job_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")] | None = None
    """The caller's id for the job; generated if left out."""

    @property
    def roles(self) -> frozenset[str]:
        """The roles of its worker type that this request needs (`WorkerSpec.roles`)."""
        return frozenset()
