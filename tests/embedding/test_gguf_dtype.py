"""The type of a GGUF's weights for embeddings on vLLM."""

from __future__ import annotations

import pytest

from deployments.embedding.vllm_embedding_engine import _gguf_dtype
from rbee_serve.worker.spec import Device


@pytest.mark.parametrize(
    ("accelerator", "dtype", "expected"),
    [
        ("cuda", None, "float16"),
        ("cuda", "auto", "float16"),
        ("cuda", "half", "float16"),
        ("cuda", "float32", "float32"),
        ("cpu", None, "float32"),
    ],
)
def test_a_gguf_is_dequantised_to_the_type_that_vllm_computes_in(
    accelerator: str, dtype: str | None, expected: str
) -> None:
    device = Device("cuda", ("0",)) if accelerator == "cuda" else Device("cpu")
    assert _gguf_dtype(device, dtype) == expected
