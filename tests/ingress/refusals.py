"""The form of every refusal, and what no response may contain."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.ingress.bad_json import CONTENT
from tests.raw_http import RawResponse

INTERNAL = re.compile(
    rb"0x[0-9a-f]{4}|Traceback|File \"|/home|/root|/tmp|/usr|\.py\b|site-packages|\bray\b|pydantic", re.I
)
"""Internals of the server: in no response."""


def check_refusal(response: RawResponse, status: int, code: str) -> Any:
    """The body of a response of the application, if it has the expected status and code, our form, no internals and
    nothing of the prompt. None where it has no body."""
    assert response.status == status, response.body[:300]
    assert not INTERNAL.search(response.raw), response.raw
    assert CONTENT.encode() not in response.raw
    assert re.fullmatch(r"corr-[0-9a-f]{16}", response.headers["x-correlation-id"])
    if not response.body:  # the response to HEAD
        return None
    body = json.loads(response.body)
    if status == 401:
        assert body["error"]["code"] == code
        return None
    assert (body["code"], type(body["message"]), type(body["retriable"])) == (code, str, bool)
    assert len(response.body) < 20_000
    return body
