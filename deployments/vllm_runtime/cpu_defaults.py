"""Defaults of vLLM's options on a CPU; the configuration may replace them."""

from __future__ import annotations

from typing import Any

from deployments.vllm_runtime.engine_options import vllm_options
from rbee_serve.worker.spec import LoadContext

STEP_TOKENS = 256
"""Prompt tokens in a step of the engine. vLLM's 2,048 keep two cores busy for 12 s to more than a minute, in which no
request gets a token and hang detection sees no step."""


def dtype_default(context: LoadContext) -> dict[str, Any]:
    """vLLM's `dtype`: float32 where the CPU has no bfloat16 instructions and no AVX-512 to emulate them. On such a CPU
    SmolLM2-135M reads prompts ten times slower in bfloat16, the type of most models."""
    if context.device.accelerator != "cpu" or _vector_extension() != "AVX2":
        return {}
    return {"dtype": "float32"}


def step_size_default(context: LoadContext) -> dict[str, Any]:
    """vLLM's `max_num_batched_tokens`, for models that can read a prompt in several steps."""
    options = vllm_options(context.worker)
    if context.device.accelerator != "cpu" or options.enable_chunked_prefill is False:
        return {}
    return {"max_num_batched_tokens": max(STEP_TOKENS, options.max_num_seqs or 0)}


def _vector_extension() -> str:
    """The widest vector instructions that torch uses here, by torch's name."""
    import torch

    return str(torch.backends.cpu.get_cpu_capability())
