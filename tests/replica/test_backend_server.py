"""The messages that the process of a backend sends, without the process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from rbee_serve.config import WorkerConfig
from rbee_serve.errors import InternalError
from rbee_serve.events import End, Event, StopReason
from rbee_serve.replica import backend_messages as messages
from rbee_serve.replica import backend_server
from rbee_serve.replica.backend_server import BackendServer
from rbee_serve.request import InferenceRequest
from rbee_serve.state import LoadProgress, invalid_field
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.spec import Device, LoadContext
from rbee_serve.worker.watchdog import Watchdog


class CancellingBackend(InferenceBackend[InferenceRequest, Any]):
    """Raises `CancelledError` when `failing` is set; waits otherwise."""

    failing = True

    async def execute(self, request: InferenceRequest) -> AsyncGenerator[Event[Any], None]:
        if self.failing:
            raise asyncio.CancelledError
        await asyncio.Event().wait()
        yield End(tokens_out=0, decode_time_ms=0, stop_reason=StopReason.COMPLETE)

    def memory_bytes(self) -> int:
        return 0


@pytest.fixture
def sent() -> list[Any]:
    return []


@pytest.fixture
async def server(sent: list[Any]) -> BackendServer:
    server = BackendServer("a spec that no test loads", Watchdog(20))
    server._connection = SimpleNamespace(send=sent.append)  # type: ignore[assignment]
    return server


async def load(server: BackendServer, monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    monkeypatch.setattr(backend_server, "load_spec", lambda path: SimpleNamespace(load=function))
    context = messages.encode((WorkerConfig(id="w", type="w"), Device("cpu")))
    await asyncio.wait_for(server._load(context), 5)


@pytest.mark.parametrize("value", [1.5, object(), lambda: 0, 2**70, "\ud800"])
async def test_load_progress_of_any_value_is_sent_and_its_field_can_be_named(
    server: BackendServer, sent: list[Any], monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    def function(context: LoadContext) -> CancellingBackend:
        context.report(LoadProgress(stage="loading_to_vram", vram_mb=value))
        return CancellingBackend()

    await load(server, monkeypatch, function)
    loading, loaded = sent
    assert str(invalid_field(messages.decode(loading.progress))).startswith("vram_mb (")
    assert loaded == messages.Loaded()


async def test_progress_of_another_class_fails_the_load(
    server: BackendServer, sent: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await load(server, monkeypatch, lambda context: context.report("loading"))
    assert isinstance(messages.decode(sent[0].error), TypeError)


async def test_a_stop_iteration_of_the_load_fails_it(
    server: BackendServer, sent: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await load(server, monkeypatch, lambda context: next(iter([])))
    assert "StopIteration in model code" in str(messages.decode(sent[0].error))


async def test_a_cancelled_error_of_the_backend_is_an_error_of_the_stream(
    server: BackendServer, sent: list[Any]
) -> None:
    server._backend = CancellingBackend()
    server._on_message(messages.Execute(1, messages.encode(InferenceRequest()), None))
    await asyncio.wait(server._tasks.values())
    assert isinstance(messages.decode(sent[0].error), InternalError)


async def test_a_cancelled_stream_sends_nothing(server: BackendServer, sent: list[Any]) -> None:
    server._backend = CancellingBackend()
    server._backend.failing = False
    server._on_message(messages.Execute(1, messages.encode(InferenceRequest()), None))
    tasks = list(server._tasks.values())
    await asyncio.sleep(0)
    server._on_message(messages.Cancel(1))
    await asyncio.wait(tasks)
    assert tasks[0].cancelled()
    assert sent == []
