"""How much of a GPU's memory a worker may use: one formula for every engine, for the memory plan and for the checks
before a load.

    min(share, MAX_SHARE) * total - CUDA context = budget, for weights, caches and activations

Ray assigns shares of a GPU and enforces nothing. vLLM and torch are given the budget as their own limit; both count
what they allocate, and neither counts the context.
"""

from __future__ import annotations

CONTEXT_BYTES = 512 * 1024**2
"""Set aside in each process for its CUDA context, the kernels' code and the libraries' workspaces. An assumption: from
0.25 to 0.5 GiB are reported for GPUs of the last generations."""

MAX_SHARE = 0.95
"""The most of a GPU that workers may take together. The rest is left to the driver, to a display and to the buffers of
NCCL, of which neither engine knows: vLLM does not start where its limit is not free."""


def budget_bytes(total_bytes: int, share: float) -> int:
    """The bytes of one GPU with `total_bytes` that a worker with this share of it may use; 0 if the context takes
    all."""
    return max(0, int(min(share, MAX_SHARE) * total_bytes) - CONTEXT_BYTES)


def budget_fraction(total_bytes: int, share: float) -> float:
    """The budget as the part of the GPU that vLLM (`gpu_memory_utilization`) and torch take as their limit."""
    return budget_bytes(total_bytes, share) / total_bytes if total_bytes else 0.0
