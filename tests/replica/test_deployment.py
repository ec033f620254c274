"""The deployment of a worker without Ray: what the hub sees of it, above all when its backend reports nonsense."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve

from rbee_serve import correlation
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import (
    ConfigurationError,
    CudaError,
    InsufficientVram,
    InternalError,
    WorkerError,
    WorkerUnhealthy,
)
from rbee_serve.events import End, Event, StopReason
from rbee_serve.hub.replica_registry import ReplicaRegistry
from rbee_serve.hub.state_server import StateServer
from rbee_serve.replica import deployment as module
from rbee_serve.replica import loading
from rbee_serve.replica.deployment import WorkerReplica
from rbee_serve.state import LoadProgress, MemorySource, Snapshot, WorkerState
from rbee_serve.transport.refusal import refused
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.spec import Device, LoadContext, WorkerSpec
from tests.gpus.fake_nvml import FakeGpu, FakeNvml
from tests.outside_worker import LetterOutput, LetterRequest

WORKER = WorkerConfig(id="echo-0", type="tests.replica.test_deployment:SPEC")


class Backend(InferenceBackend[LetterRequest, LetterOutput]):
    """Reports what a test wants it to report."""

    memory: Any = 26
    source: Any = None
    engine: Any = None
    error: Exception | None = None
    lost = False

    async def execute(self, request: LetterRequest) -> AsyncGenerator[Event[LetterOutput], None]:
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        yield End(tokens_out=0, decode_time_ms=0, stop_reason=StopReason.COMPLETE)

    def memory_bytes(self) -> int:
        if self.error is not None:
            raise self.error
        memory: int = self.memory
        return memory

    def memory_source(self) -> MemorySource | None:
        source: MemorySource | None = self.source
        return source

    def engine_requests(self) -> int | None:
        engine: int | None = self.engine
        return engine


class Ray:
    """The few calls that a replica makes of Ray."""

    util = SimpleNamespace(get_node_ip_address=lambda: "10.0.0.1")

    @staticmethod
    def get_runtime_context() -> Any:
        return SimpleNamespace(get_node_id=lambda: "node", get_accelerator_ids=dict)


class Hub:
    """The hub's state, reached as by a deployment handle."""

    def __init__(self) -> None:
        self.registry = ReplicaRegistry([WORKER])
        self.server = StateServer(self.registry)
        self.reach = SimpleNamespace(remote=self._reach)

    async def _reach(self, node_id: str) -> Any:
        return await self.server.acceptor.endpoint("127.0.0.1")

    @property
    def worker(self) -> WorkerState:
        return self.registry.worker("echo-0")


class Replica(WorkerReplica):
    """Its end is awaited by `replica`; the garbage collector, unlike Ray Serve, would not."""

    def __del__(self) -> None:  # type: ignore[override]
        pass


Load = Callable[[LoadContext], Backend]


@pytest.fixture
async def hub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    monkeypatch.setattr(module, "ray", Ray)
    monkeypatch.setattr(correlation, "configure_logging", lambda: None)
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(replica_tag="r"))
    hub = Hub()
    yield hub
    await hub.server.acceptor.close()


@asynccontextmanager
async def replica(hub: Any, load: Load, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WorkerReplica]:
    """A replica after its constructor, as Ray Serve makes it."""
    spec: WorkerSpec[Any] = WorkerSpec(
        name="letters",
        request=LetterRequest,
        outputs=(LetterOutput,),
        load=load,
        warm_up=lambda: LetterRequest(text="a"),
    )
    monkeypatch.setattr(module, "load_spec", lambda path: spec)
    made = Replica.__new__(Replica)
    try:
        await made.__init__(WORKER, "spec", hub, {})  # type: ignore[misc]
        yield made
    finally:
        await WorkerReplica.__del__(made)


async def test_a_replica_that_has_loaded_is_ready(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    async with replica(hub, lambda context: Backend(), monkeypatch) as made:
        assert hub.worker.ready
        assert hub.worker.memory_bytes == 26
        assert [replica.node for replica in hub.worker.replicas] == ["10.0.0.1"]
        await made.check_health()


class RayWithGpus(Ray):
    """Ray, which has assigned GPUs to the replica."""

    @staticmethod
    def get_runtime_context() -> Any:
        ids = {"GPU": ["GPU-b", "GPU-c"]}
        return SimpleNamespace(get_node_id=lambda: "node", get_accelerator_ids=lambda: ids)


@pytest.fixture
def two_gpus(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ray", RayWithGpus)
    monkeypatch.setattr(sys.modules[__name__], "WORKER", WorkerConfig(id="echo-0", type=WORKER.type, gpus=2))
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(*(FakeGpu(uuid=f"GPU-{letter}") for letter in "abc")))


@pytest.mark.usefixtures("two_gpus")
async def test_a_replica_reports_the_numbers_of_its_gpus_and_loads_on_their_ids(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Device] = []

    def load(context: LoadContext) -> Backend:
        seen.append(context.device)
        return Backend()

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-c,GPU-b")
    async with replica(hub, load, monkeypatch):
        assert seen == [Device("cuda", ("GPU-c", "GPU-b"))]
        assert (hub.worker.backend, hub.worker.devices) == ("cuda", (1, 2))


@pytest.mark.usefixtures("two_gpus")
async def test_a_replica_that_ray_does_not_pin_to_its_gpus_fails_with_what_to_do(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(ConfigurationError):
        async with replica(hub, lambda context: Backend(), monkeypatch):
            pass
    assert hub.worker.error == (
        "worker echo-0: Ray assigned it GPU GPU-b,GPU-c, but its process sees all GPUs (CUDA_VISIBLE_DEVICES); "
        "start Ray without RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
    )


async def test_a_backend_without_memory_bytes_is_an_error_that_names_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend()
    backend.memory = None
    with pytest.raises(ConfigurationError, match="memory_bytes"):
        async with replica(hub, lambda context: backend, monkeypatch):
            pass
    assert hub.worker.availability == "error"
    assert hub.worker.error == (
        "worker echo-0: its backend reports a state with a value of the wrong type: "
        "memory_bytes (Expected `int`, got `None`)"
    )


async def test_load_progress_of_a_wrong_type_is_an_error_that_names_its_field(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(context: LoadContext) -> Backend:
        context.report(LoadProgress(stage="loading_to_vram", bytes_done=0.5))  # type: ignore[arg-type]
        return Backend()

    with pytest.raises(WorkerError, match="bytes_done"):
        async with replica(hub, load, monkeypatch):
            pass
    assert hub.worker.availability == "error"
    assert "load progress with a value of the wrong type: bytes_done (Expected `int | null`, got `float`)" in str(
        hub.worker.error
    )


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("memory", 1.5, "memory_bytes (Expected `int`, got `float`)"),
        ("source", "guess", "memory_source (Invalid enum value 'guess')"),
        ("engine", "many", "engine_requests (Expected `int | null`, got `str`)"),
        ("error", ValueError("secret"), "ValueError"),
    ],
)
async def test_a_ready_backend_that_begins_to_report_nonsense_is_shown_as_failed_and_replaced(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, reason: str
) -> None:
    backend = Backend()
    async with replica(hub, lambda context: backend, monkeypatch) as made:
        assert hub.worker.ready
        setattr(backend, name, value)
        await made._reporter.push_now()
        assert [replica.phase for replica in hub.worker.replicas] == ["error"]
        assert hub.worker.availability == "loading"  # Ray Serve replaces it
        assert reason in str(hub.worker.lost)
        assert hub.worker.reason.endswith("; a replacement is starting")
        assert "secret" not in hub.worker.reason
        with pytest.raises(WorkerError):
            await made.check_health()


async def test_a_replica_whose_accelerator_is_lost_is_replaced_and_the_reason_is_shown(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend()
    async with replica(hub, lambda context: backend, monkeypatch) as made:
        backend.lost = True
        with pytest.raises(CudaError):
            await made.collect({"text": "a"})
        with pytest.raises(WorkerUnhealthy, match="its accelerator has failed"):
            await made.check_health()
        assert not hub.worker.ready
        assert "accelerator" in str(hub.worker.lost)


async def test_memory_that_runs_out_during_the_load_is_the_code_that_is_shown(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(context: LoadContext) -> Backend:
        raise RuntimeError("cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED")

    with pytest.raises(InsufficientVram):
        async with replica(hub, load, monkeypatch):
            pass
    assert hub.worker.error_code == "INSUFFICIENT_VRAM"
    assert "CUBLAS_STATUS_ALLOC_FAILED" in str(hub.worker.error)


async def test_a_value_beyond_64_bits_is_an_error_that_names_its_field(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend()
    backend.memory = 2**64
    with pytest.raises(ConfigurationError, match="memory_bytes"):
        async with replica(hub, lambda context: backend, monkeypatch):
            pass
    assert "memory_bytes" in str(hub.worker.error)


async def test_the_request_of_an_ingress_is_answered_in_chunks(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    async with replica(hub, lambda context: Backend(), monkeypatch) as made:
        chunks = [chunk async for chunk in made._respond({"text": "abc"})]
        assert [chunk[1] for chunk in chunks] == [False, True]
        (refusal,) = [chunk async for chunk in made._respond({"text": 7})]
        assert refused(*refusal[:2]) is not None


@pytest.mark.parametrize("was_ready", [True, False])
async def test_a_replacement_that_cannot_be_loaded_pauses_before_ray_serve_starts_the_next(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, was_ready: bool
) -> None:
    monkeypatch.setattr(loading, "RETRY_PAUSE_S", 0.3)

    def fail(context: LoadContext) -> Backend:
        raise InternalError("no such file")

    if was_ready:
        async with replica(hub, lambda context: Backend(), monkeypatch):
            pass
    started_at = time.monotonic()
    with pytest.raises(InternalError):
        async with replica(hub, fail, monkeypatch):
            pass
    assert (time.monotonic() - started_at >= 0.3) == was_ready
    assert hub.worker.availability == ("loading" if was_ready else "error")


async def test_without_a_hub_a_failed_load_is_raised_at_once() -> None:
    async def watch(version: int, max_wait_s: float) -> Snapshot:
        raise ConnectionError("the hub is gone")

    await loading.pause_before_retry(watch, "echo-0")
