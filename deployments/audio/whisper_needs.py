"""What Whisper needs of its GPU, on CTranslate2 and on transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import Figure, MemoryNeeds
from rbee_serve.memory_plan.transformer_config import dimension

MIB = 1024**2

WORKSPACE_BYTES = 384 * MIB
"""Spectrogram, workspaces and what an allocator keeps: an estimate."""

STORED_BYTES = 2
"""Bytes of an element in a converted model, which is nearly always float16."""

CACHES = 0.27
"""The encoder's output and the decoder's caches as a part of the weights: 0.24 for `large-v3`, whose decoder has 32
layers of 1,280, and 0.28 for `small`, with 12 of 768."""

COMPUTE_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "int16": 2.0, "int8": 1.05}
"""Bytes of an element in memory, by the beginning of CTranslate2's `compute_type`; int8 has scales beside it."""


def ctranslate2_needs(compute_type: str | None, facts: ModelFacts) -> MemoryNeeds:
    """The needs of a converted Whisper. CTranslate2 has no option for a limit, and a converted model's files do not
    have its dimensions, so what it holds beside the weights is an estimate from their size, for five beams: 0.5 GB
    for `small`, 1.2 GB for `large-v3`. faster-whisper's own benchmark reports 4.5 GB for `large-v2` in float16, context
    included; the plan has 4.8."""
    stored = facts.weights_figure()
    if stored is None:
        return MemoryNeeds(weights=None, activations=None)
    kind = (compute_type or "float16").partition("_")[0]
    known = kind in COMPUTE_BYTES
    weights = int(stored.bytes * COMPUTE_BYTES[kind] / STORED_BYTES) if known else stored.bytes
    return MemoryNeeds(
        weights=Figure(weights, stored.source, stored.assumed or kind not in ("float16", "bfloat16")),
        activations=Figure(WORKSPACE_BYTES + int(CACHES * stored.bytes), "an estimate from its size", assumed=True),
    )


def whisper_needs(dtype: str, beams: int, facts: ModelFacts) -> MemoryNeeds:
    """The needs of a Whisper on transformers."""
    activations = _decoding_bytes(facts.config(), beams, 4 if dtype == "float32" else 2)
    return MemoryNeeds(
        weights=facts.weights_figure(dtype),
        activations=None
        if activations is None
        else Figure(activations + WORKSPACE_BYTES, "an estimate for one window of 30 s", assumed=True),
    )


def _decoding_bytes(config: Mapping[str, Any], beams: int, size: int) -> int | None:
    """The encoder's widest layer for 30 s, and the decoder's caches: its own tokens and the encoder's frames."""
    hidden, layers = dimension(config, ("d_model",)), dimension(config, ("decoder_layers",))
    if hidden is None or layers is None:
        return None
    frames = dimension(config, ("max_source_positions",)) or 1500
    tokens = dimension(config, ("max_target_positions",)) or 448
    encoder = frames * (4 * hidden + 2 * 4 * hidden) * size
    return encoder + beams * (frames + tokens) * layers * 2 * hidden * size
