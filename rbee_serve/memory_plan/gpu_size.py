"""The memory of a GPU that CUDA can use.

A card has less of it than is printed on its box. CUDA reports 22.0 GiB on an A10G or L4 and 23.5 on a 4090, all sold
with 24 GB; 14.6 on a T4 (16 GB), 44.4 on an L40S (48 GB), 79.2 on an A100 (80 GB). Two things are missing: error
correction keeps a sixteenth where the memory is GDDR and the card is for servers, and the driver keeps up to 0.6 GiB.
The plan for a size as sold subtracts both, so it holds for every card of that size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rbee_serve.errors import ConfigurationError
from rbee_serve.nvml import Gpu

GIB = 1024**3

DRIVER_BYTES = int(0.6 * GIB)
"""What the driver keeps of the memory that it reports: 0.43 GiB on an A10G, 0.59 on an L40S."""

ECC_PART = 1 / 16
"""The part of GDDR memory that error correction takes."""

_SIZE = re.compile(r"(?P<number>\d{1,5}(?:\.\d{1,3})?)\s?(?P<unit>GiB|GB|MiB)")


@dataclass(frozen=True, slots=True)
class GpuSize:
    """One GPU of the plan: its name for people, the bytes that CUDA can use, and those in use by other processes."""

    name: str
    usable_bytes: int
    used_bytes: int = 0


def parse_gpu_size(text: str) -> GpuSize:
    """`24GiB` or `24GB` is a card by the size on its box; `23028MiB` is what `nvidia-smi` reports, from which only the
    driver's part is subtracted. Raises `ConfigurationError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(
            f"--gpu: {text!r} is no size; write 24GiB, or what nvidia-smi reports, such as 23028MiB"
        )
    reported = match["unit"] == "MiB"
    total = int(float(match["number"]) * (1024**2 if reported else GIB))
    usable = usable_bytes(total if reported else int(total * (1 - ECC_PART)))
    if usable <= 0:
        raise ConfigurationError(f"--gpu: {text!r} leaves nothing beside the driver; write a size such as 24GiB")
    return GpuSize(f"{text.strip()}" if reported else f"a card of {match['number']} GB", usable)


def gpu_here(gpu: Gpu) -> GpuSize:
    """A GPU of this machine. Raises `NvmlUnavailable`."""
    memory = gpu.memory()
    # What the driver keeps counts as used.
    return GpuSize(gpu.name, usable_bytes(memory.total), max(0, memory.total - memory.free - DRIVER_BYTES))


def usable_bytes(reported_bytes: int) -> int:
    """What CUDA can use of the bytes that the driver reports."""
    return reported_bytes - DRIVER_BYTES
