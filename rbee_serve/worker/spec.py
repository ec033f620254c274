"""`WorkerSpec`: everything that differs between worker types."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rbee_serve.config import WorkerConfig
from rbee_serve.events import Event
from rbee_serve.outputs import OutputValue
from rbee_serve.request import InferenceRequest
from rbee_serve.result import EncodedResult, Result
from rbee_serve.state import LoadProgress
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.spec_rules import output_faults, request_faults
from rbee_serve.worker.watchdog import Watchdog

if TYPE_CHECKING:
    from rbee_serve.memory_plan.model_facts import ModelFacts
    from rbee_serve.memory_plan.needs import MemoryNeeds

RequestT = TypeVar("RequestT", bound=InferenceRequest)


@dataclass(frozen=True, slots=True)
class Device:
    """Where a replica runs: `accelerator` is `cuda`, `cpu` or `metal`."""

    accelerator: str
    ids: tuple[str, ...] = ("0",)
    """Its devices in the order in which its process numbers them. A GPU has the id by which CUDA knows it in
    `CUDA_VISIBLE_DEVICES`: a number, a UUID (`GPU-…`), or the UUID of a MIG instance (`MIG-…`)."""
    fraction: float = 1.0
    """The share of one device that it may use; of the instance on MIG."""


Peer = Callable[[dict[str, Any]], AsyncGenerator[Event[Any], None]]
"""Another worker of the application: the fields of a request in, its events out. Closing the generator cancels the
request. A refusal is raised as a `WorkerError`."""


def _do_not_wait() -> None:
    """There is no GPU to wait for."""


@dataclass(frozen=True, slots=True)
class LoadContext:
    """The arguments of `WorkerSpec.load`."""

    worker: WorkerConfig
    device: Device
    report: Callable[[LoadProgress], None]
    """Reports the progress of the load; may be called from any thread, at any rate."""
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(math.inf))
    """Records the engine's steps. A replica whose engine has work and completes no step for `hang_timeout_s` is
    replaced; a worker type that does not use the watchdog never stalls."""
    peers: Mapping[str, Peer] = field(default_factory=dict)
    """The workers that this one may call, by role (`uses:` in the configuration)."""
    wait_for_gpu: Callable[[], None] = _do_not_wait
    """Blocks until no other model is being loaded onto the GPUs of this worker, which are then its own until it has
    warmed up. Returns at once on another device, and from the second call on. See `WorkerSpec.waits_for_gpu`."""


@dataclass(frozen=True)
class WorkerSpec(Generic[RequestT]):
    """A worker type: everything that differs between worker types.

    It stands in one module with its request model and its backend, and the configuration names it by an import string.
    The module must import without torch, vllm or transformers, because the ingress imports it for its request model:
    import heavy libraries inside `load`. Raises `ValueError`, with every fault, where the request has an unbounded
    field or an output would break the stream; `rbee_serve.testing.check_worker_type` checks the behaviour.
    """

    name: str
    """The type's name; `/info` calls the implementation `rbee-serve/<name>`."""
    request: type[RequestT]
    """Fields, bounds and, as pydantic validators, rules across fields."""
    outputs: tuple[type[OutputValue], ...]
    """The classes of its outputs. Each joins its own outputs where a request asks for one result."""
    load: Callable[[LoadContext], InferenceBackend[RequestT, Any]]
    """Loads the model and returns when it can execute requests. Runs in a thread."""
    warm_up: Callable[[], RequestT]
    """A small real request. It must succeed before the worker is ready."""
    long_request: Callable[[], RequestT] | None = None
    """A valid request that takes seconds, so that a test can cancel it in the middle; required by
    `rbee_serve.testing.check_worker_type`."""
    accelerators: frozenset[str] = frozenset({"cuda", "cpu", "metal"})
    """The kinds of device that it can run on."""
    default_max_ongoing_requests: int = 64
    """Requests that run at once in a replica where the configuration does not set `max_ongoing_requests`."""
    needs_model: bool = True
    """Whether `model_ref` must be given."""
    task: str | None = None
    """The task, where the type has several; each task is a spec of its own."""
    modules: tuple[str, ...] = ()
    """The heavy modules that `load` imports, so that a missing one is reported early and in one sentence."""
    extra: str | None = None
    """The extra of rbee-serve that installs them, or several with commas; `cpu` stands for `gpu` on a GPU."""
    own_process: bool = False
    """Whether the backend runs in a process of its own (`replica.backend_process`), which is faster for an engine that
    launches many short operations from Python. A type with `roles` cannot: its peers are in the replica's process."""
    waits_for_gpu: bool = False
    """Whether `load` calls `LoadContext.wait_for_gpu` itself: when the files are on disk and the heavy modules are
    imported, before the GPU's free memory is read or any of it is taken. Otherwise the wait comes before `load`, which
    is as safe, but then other models on the same GPU wait for its download and its imports too."""
    encode_result: Callable[[RequestT, Result], EncodedResult | None] | None = None
    """Encodes the result as the file that the request asks for, such as `audio/wav`; None for JSON. Runs in a thread,
    for requests with `"stream": false`."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Other workers that it can call, by role: the registry's name of the type that each must have, such as
    `{"audio": "audio/generate"}`. The configuration names them (`uses:`), and `InferenceRequest.roles` returns those
    that a request needs."""
    check: Callable[[WorkerConfig], object] | None = None
    """Checks the worker's configuration before anything starts, such as `partial(parse_engine, Options)`; raises
    `ConfigurationError` whose message begins with the wrong key, such as `engine.dtype: …`."""

    max_gpus: int | None = None
    """The most GPUs that one replica can use; any number if None. With 1, `replicas` use more of them."""
    memory: Callable[[WorkerConfig, ModelFacts, int], MemoryNeeds] | None = None
    """What a worker needs of each of its GPUs, whose bytes are the last argument, from what is known of its model. If
    None, the memory plan counts the weights as they are stored and names the rest as unknown."""

    def __post_init__(self) -> None:
        faults = [*request_faults(self.request), *output_faults(self.outputs)]
        if self.own_process and self.roles:
            faults.append("a worker type with roles cannot have own_process: its peers are in the replica's process")
        if faults:
            raise ValueError(f"worker type {self.full_name}: {'; '.join(faults)}")

    @property
    def full_name(self) -> str:
        """The type and, where it has several tasks, the task: the key in a registry, such as `audio/generate`."""
        return f"{self.name}/{self.task}" if self.task else self.name
