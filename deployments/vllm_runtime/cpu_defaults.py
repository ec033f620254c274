"""What vLLM is told where it generates on a CPU, unless the configuration says it."""

from __future__ import annotations

import importlib
from typing import Any

from deployments.vllm_runtime.vllm_engine import engine_choices
from rbee_serve.worker.spec import LoadContext

STEP_TOKENS = 256
"""Tokens of prompts that a step of the engine reads at most. vLLM's 2,048 keep two cores busy for 12 s to more than
a minute: whoever is being answered waits for that long, and so does whoever wants to know whether the engine hangs."""


def number_type(context: LoadContext) -> dict[str, Any]:
    """vLLM's `dtype`: float32 where the processor knows no bfloat16 and has no AVX-512 to make up for that. On such a
    one SmolLM2-135M reads prompts ten times slower in bfloat16, the type that most models come in."""
    if context.device.accelerator != "cpu" or _vectors() != "AVX2":
        return {}
    return {"dtype": "float32"}


def step_size(context: LoadContext) -> dict[str, Any]:
    """vLLM's `max_num_batched_tokens`, for models whose prompts can be read in parts."""
    chosen = engine_choices(context.worker)
    if context.device.accelerator != "cpu" or chosen.get("enable_chunked_prefill") is False:
        return {}
    return {"max_num_batched_tokens": max(STEP_TOKENS, chosen.get("max_num_seqs", 0))}


def _vectors() -> str:
    """The widest vectors that torch uses here, as it calls them."""
    return str(importlib.import_module("torch").backends.cpu.get_cpu_capability())
