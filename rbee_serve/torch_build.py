"""The installed build of PyTorch, for CUDA or for CPUs, and what to do where it does not fit the device.

Read from torch's own file of versions: an import of torch takes seconds, and fails where it is broken. The build of
vLLM is the same, as each needs the other's (`scripts/install.py`).
"""

from __future__ import annotations

import importlib.util
import runpy
from dataclasses import dataclass
from pathlib import Path

INSTALL = (
    "`make install EXTRAS={extra},embedding,audio,vision`, or install 'rbee-serve[{extra}]' into a new environment"
)
DRIVERS = {12: 525, 13: 580}
"""The oldest driver for each release of CUDA, which also runs programs of its later minor releases:
https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html."""


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """A build of PyTorch: `cuda` is the CUDA for which it was built, such as (13, 0), or None for a CPU build."""

    version: str
    cuda: tuple[int, int] | None


def installed_build() -> TorchBuild | None:
    """The build that this environment has; None without PyTorch. Imports nothing."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    versions = runpy.run_path(str(Path(spec.origin).parent / "version.py"))
    cuda = versions["cuda"]
    major, minor = str(cuda).split(".")[:2] if cuda else ("", "")
    return TorchBuild(str(versions["__version__"]), (int(major), int(minor)) if cuda else None)


def cpu_build(library: str) -> str:
    """What to do about a build for CPUs of `library` where a GPU is to be used."""
    return f"the installed {library} is built for CPUs and cannot use a GPU; run {INSTALL.format(extra='gpu')}"


def gpu_build(library: str) -> str:
    """What to do about a build for GPUs of `library` where a CPU is to be used."""
    return (
        f"the installed {library} is built for GPUs and cannot run on a CPU; give the worker `gpus`, such as 0.3, or "
        f"run {INSTALL.format(extra='cpu')}"
    )


def driver_fault(cuda: tuple[int, int], driver: tuple[int, int]) -> str | None:
    """What to do about a driver that supports CUDA up to `driver` only, where PyTorch was built for `cuda`."""
    if driver[0] >= cuda[0]:
        return None
    oldest = f" ({DRIVERS[cuda[0]]} or newer)" if cuda[0] in DRIVERS else ""
    return (
        f"NVIDIA's driver supports CUDA {driver[0]}.{driver[1]}, and the installed PyTorch is built for CUDA "
        f"{cuda[0]}.{cuda[1]}; install a driver for CUDA {cuda[0]}{oldest}"
    )
