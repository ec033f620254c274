"""`WorkerSpec`: everything that differs between worker types."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from rbee_serve.config import WorkerConfig
from rbee_serve.events import Event
from rbee_serve.outputs import OutputValue
from rbee_serve.request import InferenceRequest
from rbee_serve.result import EncodedResult, Result
from rbee_serve.state import LoadProgress
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.watchdog import Watchdog

RequestT = TypeVar("RequestT", bound=InferenceRequest)


@dataclass(frozen=True, slots=True)
class Device:
    """Where a replica runs: `accelerator` is `cuda`, `cpu` or `metal`; `indices` number the devices of that kind on the
    machine; `fraction` is the share of one that it may use."""

    accelerator: str
    indices: tuple[int, ...] = (0,)
    fraction: float = 1.0


Peer = Callable[[dict[str, Any]], AsyncGenerator[Event[Any], None]]
"""Another worker of the application: the fields of a request in, its events out. Closing the generator stops the work.
What prevents it is raised, as a `WorkerError`."""


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What a worker type is given to load its model."""

    worker: WorkerConfig
    device: Device
    report: Callable[[LoadProgress], None]
    """Tells how far the load is; may be called from any thread, as often as one likes."""
    steps: Watchdog = field(default_factory=lambda: Watchdog(math.inf))
    """Where the engine notes its steps; a worker whose engine has work and makes none for `hang_timeout_s` is replaced.
    Nothing is expected of a worker type that does not use it."""
    peers: Mapping[str, Peer] = field(default_factory=dict)
    """The workers that this one may call, by role (`uses:` in the configuration)."""


@dataclass(frozen=True)
class WorkerSpec(Generic[RequestT]):
    """A worker type.

    It lives in one module beside its request model and its backend, and is named by an import string. The module must
    import without torch, vllm or transformers, because the ingress imports it for its request model: import heavy
    libraries inside `load`.
    """

    name: str
    """The type's name; `/info` calls the implementation `rbee-serve/<name>`."""
    request: type[RequestT]
    """Fields, bounds and, as pydantic validators, rules across fields."""
    outputs: tuple[type[OutputValue], ...]
    """The classes of its outputs. Each joins its own where one result is asked for."""
    load: Callable[[LoadContext], InferenceBackend[RequestT, Any]]
    """Loads the model and returns when it can answer. Runs in a thread."""
    warm_up: Callable[[], RequestT]
    """A small real request. It must have worked before the worker counts as ready."""
    long_request: Callable[[], RequestT] | None = None
    """A valid request that takes seconds, so that a test can cancel it in the middle; required by
    `rbee_serve.testing.check_worker_type`."""
    accelerators: frozenset[str] = frozenset({"cuda", "cpu", "metal"})
    """Where it can run."""
    default_max_ongoing_requests: int = 64
    """Requests that run at once in a replica where the configuration does not set `max_ongoing_requests`."""
    needs_model: bool = True
    """Whether `model_ref` must be given."""
    task: str | None = None
    """Which of the type's tasks this is, where it has several; each is a spec of its own."""
    modules: tuple[str, ...] = ()
    """The heavy modules that `load` imports, to tell early and in one sentence when one is missing."""
    extra: str | None = None
    """The extra of rbee-serve that installs them."""
    own_process: bool = False
    """Whether the backend is to run in a process of its own (`replica.backend_process`), which is faster for an engine
    of many short operations in Python's hands. A type with `roles` cannot: its peers are in the replica's process."""
    encode_result: Callable[[RequestT, Result], EncodedResult | None] | None = None
    """Makes the file that a request asks for instead of JSON, such as `audio/wav`; None where it asks for none. Runs in
    a thread, for requests with `"stream": false`."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Other workers that it can call, by role: the registry's name of the type that each must have, such as
    `{"audio": "audio/generate"}`. The configuration names them (`uses:`), and the request tells which of them it needs
    (`InferenceRequest.roles`)."""
    check: Callable[[WorkerConfig], None] | None = None
    """Looks at the worker's configuration before anything starts; raises `ConfigurationError` whose message begins with
    the key that is wrong, such as `model_ref: …`."""

    def __post_init__(self) -> None:
        if self.own_process and self.roles:
            raise ValueError(f"{self.name}: a worker type with roles cannot have own_process; its peers stay here")
