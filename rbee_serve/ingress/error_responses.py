"""The one place where an error becomes an HTTP response."""

from __future__ import annotations

import logging

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rbee_serve.errors import InternalError, MethodNotAllowed, RouteNotFound, WorkerError

logger = logging.getLogger(__name__)


def error_response(error: WorkerError) -> Response:
    """`{"code","message","retriable"}` with the error's status, and `Retry-After` where waiting helps."""
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s is not None else None
    return JSONResponse(error.to_json(), error.http_status, headers=headers)


async def on_worker_error(request: Request, error: Exception) -> Response:
    """Starlette's handler for every `WorkerError` that an endpoint raises."""
    assert isinstance(error, WorkerError)
    return error_response(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's handler for its own exceptions: no such path, no such method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        headers = error.headers or {}
        allowed = headers.get("Allow", "another method")
        response = error_response(MethodNotAllowed(f"{request.method} is not allowed here; use {allowed}"))
        response.headers.update(headers)
        return response
    return error_response(RouteNotFound("no such path; GET /v1/workers lists the workers and their URLs"))


async def on_unexpected(request: Request, error: Exception) -> Response:
    """The handler for all other exceptions. Starlette raises it again after the response, so it is logged once."""
    return error_response(InternalError("the server failed on this request; its log has the details"))
