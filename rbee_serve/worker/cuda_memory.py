"""What a worker holds on its GPUs, by the best source that there is.

NVIDIA's driver counts memory by process, but not everywhere: in a container it lists the host's process ids, or 0 bytes
(https://github.com/NVIDIA/open-gpu-kernel-modules/pull/614), and on WSL and some MIG instances no memory. Then what
torch has reserved is counted, by the process that has loaded the model, and else the worker's share.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import psutil

from rbee_serve import nvml
from rbee_serve.gpu_budget import CONTEXT_BYTES
from rbee_serve.nvml import NvmlUnavailable
from rbee_serve.state import MemorySource
from rbee_serve.worker.spec import Device


def cuda_memory(device: Device, engine_bytes: Callable[[], int]) -> tuple[int, MemorySource | None]:
    """The bytes that this process and its descendants hold on the GPUs of `device`, and how they were counted.
    `engine_bytes` is what the processes of an engine report, 0 if they report nothing. Blocks while the driver does."""
    if held := cuda_tree_bytes(device.ids):
        return held, "driver"
    if held := torch_cuda_bytes():
        return held, "torch"
    if held := engine_bytes():
        return held, "engine"
    held = _share_bytes(device)
    return held, "share" if held else None


def cuda_tree_bytes(ids: Sequence[str]) -> int:
    """Bytes that this process and its descendants hold on the GPUs `ids` (`Device.ids`), as the driver counts them.

    0 where the driver does not report them: there is no `pynvml`, the process ids are those of another namespace, or
    one of the processes has no number.
    """
    own = psutil.Process()
    pids = {own.pid, *(child.pid for child in own.children(recursive=True))}
    total = 0
    try:
        for gpu_id in ids:
            for pid, held in nvml.gpu(gpu_id).process_bytes().items():
                if pid in pids:
                    if not held:
                        return 0
                    total += held
    except NvmlUnavailable:  # a missing number is no error
        return 0
    return total


def torch_cuda_bytes() -> int:
    """Bytes that torch in this process has reserved on the GPUs that it uses, with `CONTEXT_BYTES` for each; 0 if it
    uses none."""
    cuda = sys.modules.get("torch.cuda")
    is_initialized = getattr(cuda, "is_initialized", None)  # missing while torch is being imported
    if cuda is None or is_initialized is None or not is_initialized():
        return 0
    reserved = [int(cuda.memory_reserved(index)) for index in range(cuda.device_count())]
    return sum(held + CONTEXT_BYTES for held in reserved if held)


def _share_bytes(device: Device) -> int:
    try:
        return sum(int(device.fraction * nvml.gpu(gpu_id).memory().total) for gpu_id in device.ids)
    except NvmlUnavailable:
        return 0
