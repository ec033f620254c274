"""The headers that Ray reads, after the middleware."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from rbee_serve.ingress.ray_headers import middlewares


async def headers(request: Request) -> JSONResponse:
    return JSONResponse([name.decode("latin-1") for name, _ in request.headers.raw])


@pytest.mark.parametrize(
    ("name", "value", "is_kept"),
    [
        ("x-request-timeout-seconds", b"1", False),
        ("x-request-disconnect-disabled", b"?1", False),
        ("x-request-id", b"abc-1", True),
        ("x-request-id", b"\xff", False),
        ("x-request-id", b"a b", False),
        ("x-request-id", b"x" * 129, False),
        ("x-session-id", b"abc", True),
        ("X_Session_Id", b"\xff", False),
        ("serve_multiplexed_model_id", b"adapter-1", True),
        ("Serve-Multiplexed-Model-Id", b"\xff", False),
        ("x-anything-else", b"\xff", True),
    ],
)
def test_a_header_that_ray_reads_is_kept_only_if_it_is_harmless(name: str, value: bytes, is_kept: bool) -> None:
    client = TestClient(Starlette(routes=[Route("/", headers)], middleware=middlewares()))
    seen = client.get("/", headers=[(name.encode(), value)]).json()
    assert (name.lower() in seen) is is_kept
    assert "host" in seen
