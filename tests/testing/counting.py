"""A worker type that keeps the contract, and ways to break one of its rules."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Annotated, Any

import pytest
from pydantic import Field

from rbee_serve.testing import ContractError, check_worker_type
from rbee_serve.worker import (
    BlockingBackend,
    InferenceBackend,
    InferenceRequest,
    LoadContext,
    OutputValue,
    WorkerSpec,
)


class CountRequest(InferenceRequest):
    number: Annotated[int, Field(ge=1, le=10_000)] = 3
    """How far to count."""


class CountOutput(OutputValue, frozen=True, kw_only=True, tag="count"):
    i: int = 0


class Counter(BlockingBackend[CountRequest, CountOutput]):
    """Keeps the contract; the broken types differ from it in one thing."""

    def predict(self, request: CountRequest) -> Iterator[CountOutput]:
        for _ in range(request.number):
            time.sleep(0.001)
            yield CountOutput()


def counting(**changes: Any) -> WorkerSpec[CountRequest]:
    fields: dict[str, Any] = {
        "name": "count",
        "request": CountRequest,
        "outputs": (CountOutput,),
        "load": Counter,
        "warm_up": CountRequest,
        "long_request": lambda: CountRequest(number=10_000),
        "needs_model": False,
    }
    return WorkerSpec(**(fields | changes))


def async_backend(execute: Callable[..., Any], **attributes: Any) -> Callable[[LoadContext], Any]:
    """The `load` of a backend whose `execute` is this function of the backend and the request."""
    methods = {"execute": execute, "memory_bytes": lambda self: 1}
    return lambda context: type("Backend", (InferenceBackend,), methods | attributes)()


def executing(*events: Any) -> Callable[[LoadContext], Any]:
    """The `load` of a backend that yields these events for every request."""

    async def execute(self: Any, request: Any) -> AsyncGenerator[Any, None]:
        for event in events:
            yield event

    return async_backend(execute)


def refuses(spec: WorkerSpec[Any], sentence: str, **options: Any) -> None:
    with pytest.raises(ContractError) as caught:
        check_worker_type(spec, **options)
    assert str(caught.value).startswith(f"worker type {spec.full_name}: ")
    assert sentence in str(caught.value)
