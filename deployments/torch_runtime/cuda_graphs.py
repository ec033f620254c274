"""Run a model's forward pass as a CUDA graph.

The CPU launches each of the hundreds of kernels of a forward pass, which may take longer than the GPU's work: for
Stable Diffusion 1.5 on an H100 the launches take 48 ms and the kernels 11 ms (benchmarks/RESULTS.md). A CUDA graph is a
captured forward pass, launched as a whole. It reads its inputs and writes its outputs at fixed addresses, so both are
copied.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from rbee_serve.worker.engine_failure import EngineFailure, engine_failure

logger = logging.getLogger(__name__)

MAX_GRAPHS = 4
"""Default number of graphs to keep, the most recently used ones. A forward pass is captured when its form occurred
among as many before it, so forms that change with each step are never captured."""
WARM_UPS = 2
"""Forward passes before a capture, in which libraries select kernels and allocate workspaces."""
MAX_DIFFERENCE = 0.01
"""Maximum difference of a replay from a plain forward pass, as a fraction of the largest value."""
RETRY_S = 60.0
"""Seconds without captures after one that failed for want of memory: an attempt takes three forward passes."""

Replay = Callable[[Sequence[Any]], Any]
"""Runs a captured forward pass with other tensors of the same form; returns the model's outputs."""
Record = Callable[[Callable[[Sequence[Any]], Any], Sequence[Any]], Replay]
"""Captures a function of such tensors."""


class GraphedForward:
    """The `forward` of a model with replays of captured forward passes. Use it in one thread, in `inference_mode`. A
    forward pass that cannot be captured runs as usual; it is tried again if only memory was short.

    A capture is valid for inputs of the same form: tensors of the same shape, stride, type and device, and other
    arguments with equal values.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        record: Record,
        max_graphs: int = MAX_GRAPHS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        import torch
        from torch.utils import _pytree

        functools.update_wrapper(self, forward)
        self._forward, self._record, self._max_graphs, self._clock = forward, record, max_graphs, clock
        self._paused_until = 0.0
        self._tree = _pytree
        self._is_tensor = torch.is_tensor
        self._replays: OrderedDict[Hashable, Replay | None] = OrderedDict()
        self._recent: deque[Hashable] = deque(maxlen=max_graphs)
        self.weights: Hashable = None
        """Identifies the current weights. Set it when they change, for example to an adapter's name."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """The result of `forward`."""
        leaves, structure = self._tree.tree_flatten((arguments, named))
        tensors = [leaf for leaf in leaves if self._is_tensor(leaf)]
        try:
            form = (self.weights, str(structure), tuple(map(self._form, leaves)))
        except TypeError:  # an unhashable argument
            return self._forward(*arguments, **named)
        replay = self._replay(form, leaves, structure, tensors)
        return replay(tensors) if replay else self._forward(*arguments, **named)

    def clear(self) -> None:
        """Drop the captures, so that their memory is free. Forms that cannot be captured stay known."""
        import torch

        self._replays = OrderedDict((form, None) for form, replay in self._replays.items() if replay is None)
        torch.cuda.empty_cache()

    def _form(self, leaf: Any) -> Hashable:
        if self._is_tensor(leaf):
            return (leaf.shape, leaf.stride(), leaf.dtype, leaf.device)
        hash(leaf)
        return (type(leaf), leaf)

    def _replay(self, form: Hashable, leaves: Sequence[Any], structure: Any, tensors: Sequence[Any]) -> Replay | None:
        if form in self._replays:
            self._replays.move_to_end(form)
            return self._replays[form]
        if form not in self._recent:
            self._recent.append(form)
            return None
        if self._clock() < self._paused_until:
            return None

        def run(inputs: Sequence[Any]) -> Any:
            remaining = iter(inputs)
            all_leaves = [next(remaining) if self._is_tensor(leaf) else leaf for leaf in leaves]
            arguments, named = self._tree.tree_unflatten(all_leaves, structure)
            return self._forward(*arguments, **named)

        while len(self._replays) >= self._max_graphs:
            self._replays.popitem(last=False)
        try:
            replay = self._record(run, tensors)
        except Exception as exc:
            if engine_failure(exc) is EngineFailure.NO_VRAM:
                logger.info("memory was short for a CUDA graph; the next attempt follows in %.0f s", RETRY_S)
                self._paused_until = self._clock() + RETRY_S
                return None
            logger.info("forward passes of this form are not captured as a CUDA graph: %r", exc)
            replay = None
        self._replays[form] = replay
        return replay


def cuda_recorder(device: str, pool: Any = None) -> Record:
    """Captures CUDA graphs with a shared memory pool, `pool` if it is given: only one of them may run at a time."""
    import torch
    from torch.utils import _pytree as tree

    pool = pool or torch.cuda.graph_pool_handle()

    def record(run: Callable[[Sequence[Any]], Any], tensors: Sequence[Any]) -> Replay:
        inputs = [tensor.to(device, copy=True) for tensor in tensors]
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            expected = [run(inputs) for _ in range(WARM_UPS)][-1]
        torch.cuda.current_stream().wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = run(inputs)

        def copied(value: Any) -> Any:
            return value.clone() if torch.is_tensor(value) else value

        def replay(values: Sequence[Any]) -> Any:
            for tensor, value in zip(inputs, values, strict=True):
                tensor.copy_(value)
            graph.replay()
            return tree.tree_map(copied, outputs)

        for actual, wanted in zip(tree.tree_leaves(replay(tensors)), tree.tree_leaves(expected), strict=True):
            if torch.is_tensor(wanted) and not (actual - wanted).abs().max() <= MAX_DIFFERENCE * wanted.abs().max():
                raise ValueError("the replay's output differs from the forward pass's")
        return replay

    return record
