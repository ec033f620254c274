"""The type in which an engine on PyTorch holds a model's floats, from its options and its files."""

from __future__ import annotations

from rbee_serve.memory_plan.model_facts import ELEMENT_BYTES, ModelFacts


def element_bytes(dtype: str | None, facts: ModelFacts) -> int:
    """Bytes of one element: those of `dtype`, or of the type in the files for `auto` and None."""
    if dtype in ELEMENT_BYTES:
        return ELEMENT_BYTES[dtype]
    counts: dict[str, int] = {}
    for file in facts.weights.values():
        for kind, count in (file.elements or {}).items():
            counts[kind] = counts.get(kind, 0) + count
    if counts:
        return 2 if max(counts, key=lambda kind: counts[kind]) in ("F16", "BF16") else 4
    config = facts.config()
    stored = str(config.get("torch_dtype", config.get("dtype"))).removeprefix("torch.")
    return ELEMENT_BYTES.get(stored, 4)
