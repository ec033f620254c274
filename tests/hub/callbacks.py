"""Messages to an orchestrator, and how tests send them."""

from __future__ import annotations

import asyncio
from typing import Any

from rbee_serve.config import OrchestratorConfig
from rbee_serve.hub.orchestrator.callback_client import CallbackClient, CallbackResult
from rbee_serve.hub.orchestrator.callback_loop import CallbackLoop
from rbee_serve.hub.orchestrator.message_schemas import Heartbeat, LoadFailure, Message

TIMESTAMP = "2026-01-31T12:00:00Z"


HEARTBEAT = Heartbeat(worker_id="llm-1", timestamp=TIMESTAMP, health_status="healthy")


LOAD_FAILURE = LoadFailure(
    worker_id="llm-1",
    worker_type="llm",
    model_ref="x",
    boot_id="a",
    code="INTERNAL",
    message="no",
    timestamp=TIMESTAMP,
)


def configured(url: str, **options: Any) -> OrchestratorConfig:
    return OrchestratorConfig(callback_url=f"{url}/v1/workers/ready", timeout_s=5, **options)


def heartbeat(worker_id: str) -> Heartbeat:
    return HEARTBEAT.model_copy(update={"worker_id": worker_id})


def post(orchestrator: OrchestratorConfig, url: str, *messages: Message) -> CallbackResult:
    """The last result."""
    return post_with(CallbackClient(orchestrator), url, *messages)


def post_with(client: CallbackClient, url: str, *messages: Message) -> CallbackResult:
    async def calls() -> CallbackResult:
        results = [await client.post(url, message) for message in messages or (HEARTBEAT,)]
        return results[-1]

    with asyncio.Runner(loop_factory=CallbackLoop) as runner:
        return runner.run(calls())
