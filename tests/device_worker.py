"""A worker type that reports the devices it was assigned, and those that its process can see."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Self

from rbee_serve.worker import (
    Device,
    End,
    Event,
    InferenceBackend,
    InferenceRequest,
    Output,
    OutputValue,
    StopReason,
    WorkerSpec,
)


class DeviceOutput(OutputValue, frozen=True, kw_only=True, tag="device"):
    given: list[str]
    fraction: float
    visible: list[str] | None
    i: int

    @classmethod
    def join(cls, values: Sequence[Self]) -> dict[str, Any]:
        [value] = values
        return {"given": value.given, "fraction": value.fraction, "visible": value.visible}


class DeviceBackend(InferenceBackend[InferenceRequest, DeviceOutput]):
    def __init__(self, device: Device) -> None:
        self._device = device

    async def execute(self, request: InferenceRequest) -> AsyncGenerator[Event[DeviceOutput], None]:
        variable = os.environ.get("CUDA_VISIBLE_DEVICES")
        visible = None if variable is None else [name for name in variable.split(",") if name]
        ids, fraction = list(self._device.ids), self._device.fraction
        yield Output(DeviceOutput(given=ids, fraction=fraction, visible=visible, i=0))
        yield End(tokens_out=0, decode_time_ms=0, stop_reason=StopReason.COMPLETE)

    def memory_bytes(self) -> int:
        return 1


SPEC = WorkerSpec(
    name="device",
    request=InferenceRequest,
    outputs=(DeviceOutput,),
    load=lambda context: DeviceBackend(context.device),
    warm_up=InferenceRequest,
    needs_model=False,
)
