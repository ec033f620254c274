"""A time limit for every request to the Hugging Face Hub.

huggingface_hub has one for the bytes of a file and none for its other requests, so a firewall that drops packets would
delay a model that is in the cache for minutes.
"""

from __future__ import annotations

import functools
from typing import Any

CONNECT_TIMEOUT_S = 5.0
"""To connect to one address of the Hub, which has several; they are tried in turn."""

ANSWER_TIMEOUT_S = 10.0
"""For the first byte of a response, and between two bytes; as huggingface_hub has it for files."""


@functools.cache
def limit_requests() -> None:
    """Give the requests of huggingface_hub in this process these limits, where they have none."""
    from huggingface_hub.utils import get_session, set_client_factory

    default = get_session()
    # The hooks of huggingface_hub refuse requests where HF_HUB_OFFLINE is set.
    hooks = {**default.event_hooks, "request": [*default.event_hooks["request"], _limit]}
    set_client_factory(lambda: type(default)(event_hooks=hooks, follow_redirects=True))


def _limit(request: Any) -> None:
    # The caller's `timeout=None` replaces a limit of the client, so each request is changed.
    limits = {"connect": CONNECT_TIMEOUT_S, "read": ANSWER_TIMEOUT_S, "write": ANSWER_TIMEOUT_S}
    given = {name: value for name, value in request.extensions["timeout"].items() if value is not None}
    request.extensions["timeout"] = {"pool": None, **limits, **given}
