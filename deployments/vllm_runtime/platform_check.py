"""Whether the installed build of vLLM runs on the replica's device. vLLM does not compare the two: it takes the kind of
device that its build is for, and a GPU build the first GPU that it sees."""

from __future__ import annotations

from rbee_serve.errors import ConfigurationError
from rbee_serve.torch_build import cpu_build, gpu_build


def require_platform(worker_id: str, accelerator: str) -> None:
    """Raise `ConfigurationError` where vLLM would run on another kind of device than `accelerator`. Imports vLLM, which
    takes seconds."""
    from vllm.platforms import current_platform

    if fault := platform_fault(current_platform.device_type, accelerator):
        raise ConfigurationError(f"worker {worker_id}: {fault}")


def platform_fault(device_type: str, accelerator: str) -> str | None:
    """What to do where vLLM's platform has this type, which is empty where a GPU build finds no driver."""
    if device_type == accelerator:
        return None
    if accelerator == "cpu":
        return gpu_build("vLLM")
    if device_type == "cpu":
        return cpu_build("vLLM")
    return "vLLM finds no GPU through NVIDIA's driver; nvidia-smi must work here, in a container with --gpus all"
