"""What can go wrong, in one tree.

    WorkerError                      everything that a client may be told
    ├── CudaError                    the accelerator failed
    ├── InvalidRequest               the request breaks a rule; carries every violation
    │   └── RequestTooLong           the input does not fit the model's context
    ├── InferenceTimeout             the deadline passed before the work was done
    ├── WorkerUnhealthy              the worker cannot serve and will not by itself
    ├── InternalError                a fault of ours; details are in the log only
    ├── InsufficientResources        no room now: queue full, memory, processes
    │   └── WorkerStopping           the application is being shut down
    ├── InsufficientVram             not enough accelerator memory
    ├── WorkerLost                   a replica died with the request on it
    ├── WorkerLoading                the model is still being loaded
    ├── WorkerNotFound               no worker of that id or model
    ├── RouteNotFound                no such path
    ├── MethodNotAllowed             the path exists, the method does not
    ├── PayloadTooLarge              the body is over the cap
    ├── BodyTimeout                  the body arrived too slowly
    └── UnsupportedMediaType         not a content type that the worker reads

The first seven families and their codes are fixed by the rbee wire protocol (DESIGN of llm-worker-rbee): orchestrators
depend on them. Every class takes exactly one message, so every instance survives pickling and thereby a Ray actor call;
what else an error carries is an attribute that is set after construction.

A message is read by a person in another process: it says what to do and holds nothing internal. The text of a foreign
exception never becomes a message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
        """The wire form: `value` only where there is one to show."""
        shown = {"field": self.field, "constraint": self.constraint, "message": self.message}
        return {**shown, "value": self.value} if self.has_value else shown


class WorkerError(Exception):
    """Base of everything that a client may be told. Not raised itself."""

    code: ClassVar[str] = "INTERNAL"
    http_status: ClassVar[int] = 500
    retriable: ClassVar[bool] = True
    retry_after_s: ClassVar[int | None] = None
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
        """The body of an HTTP error: `{"code","message","retriable"}` and what the error carries beside them."""
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
        """An error that reports every violation, with all of them summed up in its message."""
        error = cls("; ".join(f"{violation.field}: {violation.message}" for violation in violations))
        error.violations = tuple(violations)
        return error

    @classmethod
    def of_field(cls, field: str, constraint: str, message: str) -> Self:
        """An error about one field."""
        return cls.because([Violation(field, constraint, message)])


class RequestTooLong(InvalidRequest):
    """The input, or the input and the wanted output, does not fit the model's context."""


class InferenceTimeout(WorkerError):
    """The deadline passed before the work was done."""

    code, http_status, retriable = "INFERENCE_TIMEOUT", 408, True


class WorkerUnhealthy(WorkerError):
    """The worker cannot serve, and waiting will not change that."""

    code, http_status, retriable = "WORKER_UNHEALTHY", 503, False


class InternalError(WorkerError):
    """A fault of ours."""

    code, http_status, retriable = "INTERNAL", 500, True


class InsufficientResources(WorkerError):
    """No room at the moment."""

    code, http_status, retriable, retry_after_s = "INSUFFICIENT_RESOURCES", 503, True, 1


class WorkerStopping(InsufficientResources):
    """The application is being shut down and takes no new work."""

    retry_after_s = 30


class InsufficientVram(WorkerError):
    """Not enough accelerator memory."""

    code, http_status, retriable, retry_after_s = "INSUFFICIENT_VRAM", 503, True, 5


class WorkerLost(WorkerError):
    """A replica died, or stopped answering, with the request on it."""

    code, http_status, retriable, retry_after_s = "WORKER_LOST", 503, True, 5


class WorkerLoading(WorkerError):
    """The model is still being loaded; `progress` tells how far it is, `progress_url` how it goes on."""

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
    """The body is over the cap."""

    code, http_status, retriable = "PAYLOAD_TOO_LARGE", 413, False


class BodyTimeout(WorkerError):
    """The body did not arrive in the time allowed."""

    code, http_status, retriable = "BODY_TIMEOUT", 408, True


class UnsupportedMediaType(WorkerError):
    """The content type or content encoding is not one that the worker reads."""

    code, http_status, retriable = "UNSUPPORTED_MEDIA_TYPE", 415, False


class ConfigurationError(Exception):
    """The configuration cannot be served as it stands. Told to the operator at start, never to a client."""


def _family(base: type[WorkerError]) -> list[type[WorkerError]]:
    return [base, *(found for child in base.__subclasses__() for found in _family(child))]


def error_from_code(code: str, message: str) -> WorkerError:
    """The error whose wire code is `code`; an unknown code is an `InternalError` with the same message.

    Where a class refines another under the same code, the general one is returned: the wire does not tell them apart.
    """
    for error_type in _family(WorkerError)[1:]:
        if error_type.code == code:
            return error_type(message)
    return InternalError(message)


def error_from_json(fields: Mapping[str, Any]) -> WorkerError:
    """The error that `WorkerError.to_json` made `fields` of; what is not as it should be there is left out."""
    error = error_from_code(str(fields.get("code")), str(fields.get("message")))
    error.violations = tuple(_violations(fields.get("errors")))
    if isinstance(url := fields.get("progress_url"), str):
        error.progress_url = url
    return error


def _violations(listed: Any) -> Iterator[Violation]:
    for told in listed if isinstance(listed, list) else ():
        if isinstance(told, dict):
            field, constraint, message = (str(told.get(name, "")) for name in ("field", "constraint", "message"))
            yield Violation(field, constraint, message, told.get("value"), "value" in told)
