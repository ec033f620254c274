"""A model's pass on a GPU, told to it in one call.

The processor tells a GPU each of the hundreds of operations of a pass, and may take longer for that than the GPU takes
to do them: a pass of Stable Diffusion 1.5 takes an H100 11 ms, and to tell it takes 48 (benchmarks/RESULTS.md). A CUDA
graph is a pass that was recorded. It reads its inputs where they lay then and leaves its outputs where they were then,
so both are copied.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any

logger = logging.getLogger(__name__)

MAX_GRAPHS = 4
"""Passes that are kept where nobody says how many: the last ones that were needed. A pass is recorded when its like was
among so many before it, so what changes with each step never is."""
WARM_UPS = 2
"""Passes before one is recorded, in which libraries choose their ways and allocate what they keep."""
DIFFERENCE = 0.01
"""Between what a recorded pass and a plain one give, at most, as a part of the largest number."""

Replay = Callable[[Sequence[Any]], Any]
"""Does a recorded pass with other tensors of the same form; returns the outputs, as the model does."""
Record = Callable[[Callable[[Sequence[Any]], Any], Sequence[Any]], Replay]
"""Records a function of tensors that are like these."""


class GraphedForward:
    """The `forward` of a model, done by recorded passes where there are some. To be used in one thread, in
    `inference_mode`. A pass that cannot be recorded is done as it was before.

    A recorded pass is good for inputs of the same form: tensors of the same shapes and types, and else the same values.
    """

    def __init__(self, forward: Callable[..., Any], record: Record, most: int = MAX_GRAPHS) -> None:
        functools.update_wrapper(self, forward)
        self._forward, self._record, self._most = forward, record, most
        self._tree = importlib.import_module("torch.utils._pytree")
        self._is_tensor = importlib.import_module("torch").is_tensor
        self._passes: OrderedDict[Hashable, Replay | None] = OrderedDict()
        self._recent: deque[Hashable] = deque(maxlen=most)
        self.weights: Hashable = None
        """Names the state of the weights; to be set by whoever changes them, to an adapter's, say."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """What `forward` gives."""
        leaves, structure = self._tree.tree_flatten((arguments, named))
        tensors = [leaf for leaf in leaves if self._is_tensor(leaf)]
        try:
            form = (self.weights, str(structure), tuple(map(self._form, leaves)))
        except TypeError:  # a value that cannot be compared
            return self._forward(*arguments, **named)
        replay = self._replay(form, leaves, structure, tensors)
        return replay(tensors) if replay else self._forward(*arguments, **named)

    def _form(self, leaf: Any) -> Hashable:
        if self._is_tensor(leaf):
            return (leaf.shape, leaf.stride(), leaf.dtype, leaf.device)
        hash(leaf)
        return (type(leaf), leaf)

    def _replay(self, form: Hashable, leaves: Sequence[Any], structure: Any, tensors: Sequence[Any]) -> Replay | None:
        if form in self._passes:
            self._passes.move_to_end(form)
            return self._passes[form]
        if form not in self._recent:
            self._recent.append(form)
            return None

        def run(given: Sequence[Any]) -> Any:
            rest = iter(given)
            all_leaves = [next(rest) if self._is_tensor(leaf) else leaf for leaf in leaves]
            arguments, named = self._tree.tree_unflatten(all_leaves, structure)
            return self._forward(*arguments, **named)

        while len(self._passes) >= self._most:
            self._passes.popitem(last=False)
        try:
            replay = self._record(run, tensors)
        except Exception as exc:  # the model does what no graph can do, or memory is short
            logger.info("passes of this form are not recorded as a CUDA graph: %r", exc)
            replay = None
        self._passes[form] = replay
        return replay


def cuda_recorder(device: str) -> Record:
    """Records CUDA graphs, which share what memory they need: only one of them runs at a time."""
    torch = importlib.import_module("torch")
    tree = importlib.import_module("torch.utils._pytree")
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[Sequence[Any]], Any], tensors: Sequence[Any]) -> Replay:
        inputs = [tensor.to(device, copy=True) for tensor in tensors]
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            expected = [run(inputs) for _ in range(WARM_UPS)][-1]
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = run(inputs)

        def copied(value: Any) -> Any:
            return value.clone() if torch.is_tensor(value) else value

        def replay(given: Sequence[Any]) -> Any:
            for tensor, value in zip(inputs, given, strict=True):
                tensor.copy_(value)
            graph.replay()
            return tree.tree_map(copied, outputs)

        for found, wanted in zip(tree.tree_leaves(replay(tensors)), tree.tree_leaves(expected), strict=True):
            if torch.is_tensor(wanted) and not (found - wanted).abs().max() <= DIFFERENCE * wanted.abs().max():
                raise ValueError("a recorded pass gives something else")
        return replay

    return record
