"""How much GPU memory torch can still allocate in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CudaMemory:
    """The state of torch's allocator, in bytes: `limit` is what this process may reserve of the GPU, `free` what no
    process has reserved, `reserved` and `allocated` what this process has. `held` is reserved for CUDA graphs and not
    allocated: their replays use it, and no other tensor can."""

    limit: int
    free: int
    reserved: int
    allocated: int
    held: int = 0

    @property
    def available(self) -> int:
        """What tensors can take beside the CUDA graphs."""
        return self.available_without_graphs - self.held

    @property
    def available_without_graphs(self) -> int:
        """What tensors could take if the CUDA graphs were dropped."""
        return min(self.free + self.reserved - self.allocated, self.limit - self.allocated)


def cuda_memory(pool: Any = None) -> CudaMemory:
    """The state now; `pool` is the memory pool of the CUDA graphs (`torch.cuda.graph_pool_handle`), if there are any.
    Takes milliseconds."""
    import torch

    free, total = torch.cuda.mem_get_info()
    segments = [] if pool is None else torch.cuda.memory_snapshot(include_traces=False)
    return CudaMemory(
        limit=int(torch.cuda.get_per_process_memory_fraction() * total),
        free=free,
        reserved=torch.cuda.memory_reserved(),
        allocated=torch.cuda.memory_allocated(),
        held=sum(
            segment["total_size"] - segment["allocated_size"]
            for segment in segments
            if tuple(segment["segment_pool_id"]) == tuple(pool)
        ),
    )
