"""Whether PyTorch can use a GPU in this process, and if not what to do."""

from __future__ import annotations

from contextlib import suppress

from rbee_serve import nvml
from rbee_serve.errors import ConfigurationError
from rbee_serve.torch_build import TorchBuild, cpu_build, driver_fault, installed_build


def require_cuda() -> None:
    """Raise `ConfigurationError` if PyTorch finds no GPU that it can use."""
    import torch

    if torch.cuda.is_available():
        return
    driver = None
    with suppress(nvml.NvmlUnavailable):
        driver = nvml.driver_cuda_version()
    raise ConfigurationError(cuda_fault(installed_build(), driver))


def cuda_fault(build: TorchBuild | None, driver: tuple[int, int] | None) -> str:
    """Why a build cannot use a GPU: by its kind, or by the CUDA that the driver supports (None without a driver)."""
    if build is None or build.cuda is None:
        return cpu_build("PyTorch")
    if driver is None:
        return "PyTorch finds no NVIDIA driver; nvidia-smi must work here, in a container with --gpus all"
    return driver_fault(build.cuda, driver) or (
        "PyTorch finds no GPU that it can use, although NVIDIA's driver is new enough; compare CUDA_VISIBLE_DEVICES "
        "with nvidia-smi -L, and restart the machine after an update of the driver"
    )
