"""Servers with and without a token, for the rules of hosts and of origins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from tests.ingress.application import application, serving
from tests.raw_http import RawResponse

PUBLIC_URL = "https://box.example:8443"
TOKEN = b"s3cret"
READY, INFER = "/workers/echo-0/v1/ready", "/workers/echo-0/v1/inference"


@contextmanager
def without_token(parser: Literal["httptools", "h11"]) -> Iterator[str]:
    """The URL of a server without a token, that no page of another origin may use."""
    with serving(application(None, public_url=PUBLIC_URL), parser) as url:
        yield url


@contextmanager
def with_token() -> Iterator[str]:
    """The URL of a server with a token, that one page and pages from files may use."""
    with serving(application(TOKEN, cors={"allow_origins": ["https://app.example", "null"]}), "httptools") as url:
        yield url


def code(response: RawResponse) -> str:
    """The code of an error."""
    return str(json.loads(response.body)["code"])
