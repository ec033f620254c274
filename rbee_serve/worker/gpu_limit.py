"""The limit on GPU memory that a worker's engine is given, from what the driver reports about the worker's GPUs."""

from __future__ import annotations

from rbee_serve import nvml
from rbee_serve.gpu_budget import budget_fraction
from rbee_serve.worker.spec import Device

UNKNOWN_TOTAL_FACTOR = 0.9
"""The part of its share that an engine may take where the driver does not report how much memory there is, so that the
CUDA context cannot be subtracted. It is what the context leaves of a share of 5 GiB."""


def gpu_memories(device: Device) -> list[nvml.GpuMemory]:
    """The memory of each of the device's GPUs now. Raises `NvmlUnavailable`."""
    return [nvml.gpu(gpu_id).memory() for gpu_id in device.ids]


def memory_fraction(device: Device) -> float:
    """The part of each GPU, from 0 to 1, that the engine may take beside its CUDA context: vLLM's
    `gpu_memory_utilization` and torch's memory fraction. An engine on several GPUs divides the model equally, so the
    smallest one counts. `UNKNOWN_TOTAL_FACTOR` of the share if the driver does not report the memory."""
    try:
        smallest = min(memory.total for memory in gpu_memories(device))
    except nvml.NvmlUnavailable:
        return UNKNOWN_TOTAL_FACTOR * device.fraction
    return budget_fraction(smallest, device.fraction)
