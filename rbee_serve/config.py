"""The configuration, parsed once when the application is built.

`serve_config.yaml` is an ordinary Ray Serve file; its `applications[].args` are an `ApplicationConfig`. An unknown key
anywhere is an error that names its path and the nearest known key. No other module reads a dict of settings.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rbee_serve.errors import ConfigurationError

Backend = Literal["auto", "cuda", "cpu", "metal"]
OptionsT = TypeVar("OptionsT", bound=BaseModel)
WorkerId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,256}$")]
LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class OrchestratorConfig(_Config):
    """The orchestrator that is notified of workers that are ready, and receives their heartbeats."""

    callback_url: Annotated[str, Field(pattern=r"^https?://[^\s/]+(/\S*)?$")]
    """Where the ready callback is POSTed, such as `http://hive:9200/v1/workers/ready`. For `protocol: queen` its
    origin is where heartbeats go too."""
    protocol: Literal["hive", "queen"] = "hive"
    """`hive`: heartbeats to `/v1/heartbeat` with the worker's id. `queen`: to `/v1/worker-heartbeat` with all of
    `/info`."""
    heartbeat_interval_s: Annotated[float, Field(gt=0, le=80)] = 30.0
    """Seconds between heartbeats. Receivers drop a worker after 90 s without one."""
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 5.0
    """Deadline of one call in seconds, from the DNS lookup to the last byte."""
    ready_backoff_max_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    """The longest pause between two attempts of the ready callback. The first is 0.5 s, each next one is doubled."""
    on_error_url: Annotated[str, Field(pattern=r"^https?://[^\s/]+(/\S*)?$")] | None = None
    """Where a load that failed for good is reported. It is never sent to the ready URL."""


class AuthConfig(_Config):
    """Who may send requests. Without a token the server listens on the loopback address only."""

    token_file: Path | None = None
    """A file whose first line is the bearer token. A file and not a value, because Ray's dashboard shows values."""

    def token(self) -> bytes | None:
        """The token, or None where none is configured. Raises `ConfigurationError` on an unreadable or empty file."""
        if self.token_file is None:
            return None
        try:
            token = self.token_file.expanduser().read_bytes().split(b"\n", 1)[0].strip()
        except OSError as exc:
            raise ConfigurationError(f"auth.token_file: {self.token_file} cannot be read: {exc.strerror}") from exc
        if not token:
            raise ConfigurationError(
                f"auth.token_file: the first line of {self.token_file} is empty; write a token there"
            )
        return token


class LimitsConfig(_Config):
    """Limits of the ingress for one request."""

    max_body_bytes: Annotated[int, Field(gt=0)] = 32 * 1024 * 1024
    """The largest request body."""
    body_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds in which a body must have arrived."""
    acknowledge_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    """Seconds in which a replica must acknowledge a request; after that the client gets `WORKER_LOST`."""


class WorkerConfig(_Config):
    """One worker: a Ray Serve deployment of its own, named by `id`."""

    id: WorkerId
    """Its name in URLs, in the orchestrator and in Ray Serve."""
    type: str
    """A name from `deployments/registry.py`, or `module:ATTRIBUTE` of a `WorkerSpec` in any installed package."""
    task: str | None = None
    """Which of the type's tasks, where it has several; the first one if left out."""
    model_ref: str | None = None
    """`hf:org/name[@revision]`, `file:PATH` or `pkg:PACKAGE/PATH`."""
    model_name: str | None = None
    """The model's name in requests and reports; the `model_ref` itself if left out."""
    backend: Backend = "auto"
    """Where the model runs. `auto` takes CUDA if the worker requests GPUs, else Metal or the CPU."""
    gpus: Annotated[float, Field(ge=0, le=64)] = 0
    """GPUs for each replica: whole ones, or a fraction of one."""
    cpus: Annotated[float, Field(ge=0, le=1024)] = 1
    """CPU cores that Ray reserves for each replica."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Compute threads in each replica. All cores if left out."""
    replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of replicas."""
    autoscaling: dict[str, Any] | None = None
    """Ray Serve's `autoscaling_config`, by its own names, in place of a fixed number of replicas."""
    max_ongoing_requests: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Requests that run at once in a replica; the worker type's default if left out."""
    max_queued_requests: Annotated[int, Field(ge=0, le=100_000)] = 1000
    """Requests that may wait in a replica beyond those that run. The next one is refused with 503."""
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """Deadline of a request in seconds from its arrival, including the time in the queue."""
    hang_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 28.0
    """Seconds without a step, while requests run, after which the engine counts as hung and its replica is replaced.
    Must be longer than the engine's slowest single step."""
    load_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds within which the model must be loaded."""
    uses: dict[str, WorkerId] = Field(default_factory=dict)
    """Other workers of this file that this one calls, by their role, such as `audio: speech-0`."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Options of the inference engine, by the engine's own names."""
    limits: dict[str, int | float] = Field(default_factory=dict)
    """Maximum of a request field, by field, that replaces the default one, such as `max_tokens: 8192`."""

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus: {self.gpus} is neither whole nor a fraction of one")
        if self.gpus and self.backend in ("cpu", "metal"):
            raise ValueError(f"gpus: {self.gpus} and backend: {self.backend} exclude each other")
        if self.autoscaling is not None and self.replicas != 1:
            raise ValueError("replicas and autoscaling exclude each other")
        return self

    @property
    def desired_replicas(self) -> int:
        """Replicas that should be running: the fixed number, or the minimum of autoscaling."""
        if self.autoscaling is None:
            return self.replicas
        return max(1, int(self.autoscaling.get("min_replicas", 1)))

    @property
    def served_name(self) -> str:
        """The model's name for clients."""
        return self.model_name or self.model_ref or self.type


class ApplicationConfig(_Config):
    """Everything under `args:` of the application."""

    workers: Annotated[list[WorkerConfig], Field(min_length=1)]
    """The workers. Each becomes a deployment."""
    orchestrator: OrchestratorConfig | None = None
    """The orchestrator to notify; none if left out."""
    auth: AuthConfig = AuthConfig()
    """Who may send requests."""
    limits: LimitsConfig = LimitsConfig()
    """Limits of the ingress for one request."""
    public_url: Annotated[str, Field(pattern=r"^https?://[^\s/]+$")] | None = None
    """How others reach this server, such as `http://box:8000`. From `http_options` if left out."""
    ingress_replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of ingress replicas."""

    @model_validator(mode="after")
    def _check_ids(self) -> Self:
        ids = [worker.id for worker in self.workers]
        doubled = sorted({worker_id for worker_id in ids if ids.count(worker_id) > 1})
        if doubled:
            raise ValueError(f"workers: the id {', '.join(doubled)} is given more than once")
        if reserved := {"ingress", "hub"}.intersection(ids):
            raise ValueError(f"workers: the id {', '.join(sorted(reserved))} is taken by the application itself")
        return self

    def worker(self, worker_id: str) -> WorkerConfig | None:
        """The worker of that id."""
        return next((worker for worker in self.workers if worker.id == worker_id), None)


_RENAMED = {"capacity": "max_ongoing_requests", "queue": "max_queued_requests"}
"""Former keys of `WorkerConfig`, and their names now."""


def parse_application(args: Any) -> ApplicationConfig:
    """`args:` as a model. Raises `ConfigurationError` with one line for each fault, by path."""
    return _parse(ApplicationConfig, args, ())


def parse_engine(options_type: type[OptionsT], worker: WorkerConfig) -> OptionsT:
    """A worker's `engine:` as a model, for engines whose options are validated here. Raises `ConfigurationError` as
    `parse_application` does."""
    return _parse(options_type, worker.engine, ("engine",))


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The sentence about a key that is none of `known`, with the nearest one of them if there is one."""
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"unknown key; did you mean {near[0]}?" if near else "unknown key"


def _parse(model: type[OptionsT], values: Any, root: tuple[str, ...]) -> OptionsT:
    try:
        return model.model_validate(values)
    except ValidationError as exc:
        lines = [f"{_path((*root, *error['loc']))}: {_sentence(error, model)}" for error in exc.errors()]
        raise ConfigurationError("\n".join(lines)) from None


def _path(loc: tuple[int | str, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return path.removeprefix(".") or "args"


def _sentence(error: Any, root: type[BaseModel]) -> str:
    if error["type"] == "missing":
        return "is missing"
    if error["type"] != "extra_forbidden":
        return str(error["msg"]).removeprefix("Value error, ")
    *parents, key = error["loc"]
    model = _model_at(root, parents)
    if model is WorkerConfig and key in _RENAMED:
        return f"is called {_RENAMED[key]} now; rename the key"
    return unknown_key(str(key), model.model_fields if model else ())


def _model_at(model: type[BaseModel] | None, loc: Iterable[int | str]) -> type[BaseModel] | None:
    """The model of the mapping at path `loc` below `model`; None where it cannot be found."""
    for part in loc:
        if isinstance(part, str):
            field = model.model_fields.get(part) if model else None
            model = _model_within(field.annotation) if field else None
    return model


def _model_within(annotation: Any) -> type[BaseModel] | None:
    """The first model in a field's type, such as `M` in `list[M]` or `M | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_within, get_args(annotation))), None)
