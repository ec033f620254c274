"""Whether an image fits into memory, before it is generated."""

from __future__ import annotations

from typing import Any

import psutil

from deployments.torch_runtime.cuda_memory import CudaMemory, cuda_memory
from rbee_serve.errors import InsufficientResources, InsufficientVram
from rbee_serve.worker.spec import Device

Size = tuple[int, int]
"""Width and height in pixels."""


class ImageMemory:
    """What an image takes beside the weights, `bytes_per_pixel`, and what there is. `pool` is the memory pool of CUDA
    graphs, or None if there are none. May be used from any thread."""

    def __init__(self, device: Device, bytes_per_pixel: float, pool: Any = None) -> None:
        self._on_gpu = device.accelerator == "cuda"
        self._bytes_per_pixel = bytes_per_pixel
        self._pool = pool

    def max_pixels(self, smallest: Size) -> int | None:
        """The pixels of the largest image that the worker's share of the GPU can hold beside what is loaded now; None
        on other devices, where memory may become free. Raises `InsufficientVram` if not even the `smallest` image fits.
        """
        if not self._on_gpu:
            return None
        memory = self._cuda()
        left = memory.limit - memory.allocated
        if (needed := self._needed(smallest)) > left:
            raise InsufficientVram(
                f"an image of {smallest[0]} x {smallest[1]} pixels takes about {_gb(needed)} to generate, and the model"
                f" leaves {_gb(left)} of its share of the GPU; raise `gpus` or choose a smaller model"
            )
        return int(left / self._bytes_per_pixel)

    def require(self, size: Size) -> None:
        """Raise `InsufficientVram` or `InsufficientResources` where an image of that size needs more memory than is
        free. CUDA graphs do not count: they are dropped where their memory is needed."""
        needed = self._needed(size)
        free = self._cuda().available_without_graphs if self._on_gpu else int(psutil.virtual_memory().available)
        if needed > free:
            kind = InsufficientVram if self._on_gpu else InsufficientResources
            raise kind(
                f"an image of {size[0]} x {size[1]} pixels takes about {_gb(needed)} to generate, and {_gb(free)} are"
                " free; request a smaller one, or try again later"
            )

    def fits_beside_graphs(self, size: Size) -> bool:
        """Whether an image of that size can be generated while the CUDA graphs keep their memory."""
        return self._pool is None or self._needed(size) <= self._cuda().available

    def _needed(self, size: Size) -> float:
        return size[0] * size[1] * self._bytes_per_pixel

    def _cuda(self) -> CudaMemory:
        return cuda_memory(self._pool)


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
