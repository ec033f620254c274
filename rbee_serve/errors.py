"""All errors, in one tree.

    WorkerError                      every error that a client may receive
    ├── CudaError                    the accelerator failed
    ├── InvalidRequest               the request breaks a rule; carries every violation
    │   ├── RequestTooLong           the input does not fit the model's context
    │   └── HttpVersionNotSupported  a version of HTTP that the server does not speak
    ├── InferenceTimeout             the deadline passed before the work was done
    ├── WorkerUnhealthy              the worker cannot serve and will not recover by itself
    ├── InternalError                an internal fault; details are in the log only
    ├── InsufficientResources        no capacity now: queue full, memory, processes
    │   └── WorkerStopping           the application is shutting down
    ├── InsufficientVram             not enough accelerator memory
    ├── WorkerLost                   a replica died while it had the request
    ├── WorkerLoading                the model is still loading
    ├── WorkerNotFound               no worker of that id or model
    ├── RouteNotFound                no such path
    ├── MethodNotAllowed             the path exists, the method does not
    ├── PayloadTooLarge              the body exceeds the limit
    ├── HeadersTooLarge              the request line and headers exceed the limit
    ├── HeaderTimeout                the headers arrived too slowly
    ├── BodyTimeout                  the body arrived too slowly
    ├── UnsupportedMediaType         a content type that the worker does not accept
    ├── MisdirectedRequest           the `Host` is no name of this server
    ├── OriginNotAllowed             a web page of another origin sent the request
    └── RateLimited                  the key has used up its share

The first seven families and their codes are fixed by the rbee wire protocol (DESIGN of llm-worker-rbee): orchestrators
depend on them. Every class takes exactly one message, so every instance survives pickling and a Ray actor call;
further values are attributes that are set after construction.

A message is read by a client: it states what to do and holds nothing internal. The text of a foreign exception never
becomes a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a request that breaks one rule.

    `field` is a path such as `messages[0].content`; `constraint` names the rule (`<= 2048`, `type: integer`);
    `value` is the offending value where it is short and not content (never a prompt, an image or audio).
    """

    field: str
    constraint: str
    message: str
    value: Any = None
    has_value: bool = False

    def to_json(self) -> dict[str, Any]:
        """The wire form, with `value` only where it may be shown."""
        shown = {"field": self.field, "constraint": self.constraint, "message": self.message}
        return {**shown, "value": self.value} if self.has_value else shown


class WorkerError(Exception):
    """Base of every error that a client may receive. Not raised itself."""

    code: ClassVar[str] = "INTERNAL"
    http_status: ClassVar[int] = 500
    retriable: ClassVar[bool] = True
    retry_after_s: int | None = None
    """Seconds for the `Retry-After` header, where waiting helps."""

    progress_url: str | None = None
    progress: dict[str, Any] | None = None
    violations: tuple[Violation, ...] = ()

    def __init__(self, message: str) -> None:
        super().__init__(message)

    @property
    def message(self) -> str:
        """The sentence for the client."""
        return str(self.args[0])

    def to_json(self) -> dict[str, Any]:
        """The body of an HTTP error: `{"code","message","retriable"}` and the further attributes of the error."""
        body: dict[str, Any] = {"code": self.code, "message": self.message, "retriable": self.retriable}
        if self.violations:
            body["errors"] = [violation.to_json() for violation in self.violations]
        if self.progress_url:
            body["progress_url"] = self.progress_url
        if self.progress:
            body["progress"] = self.progress
        return body


class CudaError(WorkerError):
    """The accelerator failed."""

    code, http_status, retriable = "CUDA_ERROR", 500, True


class InvalidRequest(WorkerError):
    """The request breaks at least one rule."""

    code, http_status, retriable = "INVALID_REQUEST", 400, False

    @classmethod
    def because(cls, violations: Sequence[Violation]) -> Self:
        """An error with these violations; its message lists all of them."""
        error = cls("; ".join(f"{violation.field}: {violation.message}" for violation in violations))
        error.violations = tuple(violations)
        return error

    @classmethod
    def of_field(cls, field: str, constraint: str, message: str) -> Self:
        """An error about one field."""
        return cls.because([Violation(field, constraint, message)])


class RequestTooLong(InvalidRequest):
    """The input, or the input with the requested output, does not fit the model's context."""


class HttpVersionNotSupported(InvalidRequest):
    """A version of HTTP that the server does not speak."""

    http_status = 505


class InferenceTimeout(WorkerError):
    """The deadline passed before the work was done."""

    code, http_status, retriable = "INFERENCE_TIMEOUT", 408, True


class WorkerUnhealthy(WorkerError):
    """The worker cannot serve, and waiting does not help."""

    code, http_status, retriable = "WORKER_UNHEALTHY", 503, False


class InternalError(WorkerError):
    """An internal fault."""

    code, http_status, retriable = "INTERNAL", 500, True


class InsufficientResources(WorkerError):
    """No capacity at the moment."""

    code, http_status, retriable, retry_after_s = "INSUFFICIENT_RESOURCES", 503, True, 1


class WorkerStopping(InsufficientResources):
    """The application is shutting down and accepts no new requests."""

    retry_after_s = 30


class InsufficientVram(WorkerError):
    """Not enough accelerator memory."""

    code, http_status, retriable, retry_after_s = "INSUFFICIENT_VRAM", 503, True, 5


class WorkerLost(WorkerError):
    """A replica died, or stopped responding, while it had the request."""

    code, http_status, retriable, retry_after_s = "WORKER_LOST", 503, True, 5


class WorkerLoading(WorkerError):
    """The model is still loading; `progress` is its current progress, `progress_url` a stream of it."""

    code, http_status, retriable, retry_after_s = "WORKER_LOADING", 503, True, 5


class WorkerNotFound(WorkerError):
    """No worker of that id, or none that serves that model."""

    code, http_status, retriable = "WORKER_NOT_FOUND", 404, False


class RouteNotFound(WorkerError):
    """No such path."""

    code, http_status, retriable = "NOT_FOUND", 404, False


class MethodNotAllowed(WorkerError):
    """The path exists, but not for that method."""

    code, http_status, retriable = "METHOD_NOT_ALLOWED", 405, False


class PayloadTooLarge(WorkerError):
    """The body exceeds the limit."""

    code, http_status, retriable = "PAYLOAD_TOO_LARGE", 413, False


class BodyTimeout(WorkerError):
    """The body did not arrive in the time allowed."""

    code, http_status, retriable = "BODY_TIMEOUT", 408, True


class UnsupportedMediaType(WorkerError):
    """The worker does not accept the content type or content encoding."""

    code, http_status, retriable = "UNSUPPORTED_MEDIA_TYPE", 415, False


class HeadersTooLarge(WorkerError):
    """The request line and the headers exceed the limit."""

    code, http_status, retriable = "HEADERS_TOO_LARGE", 431, False


class HeaderTimeout(WorkerError):
    """The headers did not arrive in the time allowed."""

    code, http_status, retriable = "HEADER_TIMEOUT", 408, True


class MisdirectedRequest(WorkerError):
    """The `Host` header is no name of this server."""

    code, http_status, retriable = "MISDIRECTED_REQUEST", 421, False


class OriginNotAllowed(WorkerError):
    """A web page of another origin sent the request."""

    code, http_status, retriable = "ORIGIN_NOT_ALLOWED", 403, False


class RateLimited(WorkerError):
    """The key has as many requests as it may have, at once or in a minute; `retry_after_s` is when it may have more."""

    code, http_status, retriable = "RATE_LIMITED", 429, True


class ConfigurationError(Exception):
    """The configuration cannot be served. Reported to the operator at startup, never to a client."""
