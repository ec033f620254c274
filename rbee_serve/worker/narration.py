"""Sentences for a person who waits for a request."""

from __future__ import annotations

from rbee_serve import correlation
from rbee_serve.events import Narration
from rbee_serve.request import InferenceRequest


def narrate(request: InferenceRequest, actor: str, action: str, human: str) -> Narration:
    """A `narration` about the work on `request`, with its job id and correlation id."""
    return Narration(
        actor=actor,
        action=action,
        target=request.job_id or "request",
        human=human,
        correlation_id=correlation.current(),
        job_id=request.job_id,
    )
