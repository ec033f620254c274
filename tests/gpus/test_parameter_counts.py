"""The numbers of parameters in `tests/gpus/models` are those of the models that transformers and diffusers build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rbee_serve.memory_plan.facts_file import read_facts_file
from tests.gpus.shipped import MODELS

pytestmark = pytest.mark.model

COUNTED = [path for path in sorted(MODELS.glob("*.json")) if "faster-whisper" not in path.name]


@pytest.mark.parametrize("path", COUNTED, ids=lambda path: path.stem)
def test_each_file_has_as_many_elements_as_the_model_of_its_configuration(path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    file = read_facts_file(path)
    for name, weights in file.weights.files.items():
        folder = name.rpartition("/")[0]
        assert weights.elements == elements(file.config.files[f"{folder}/config.json" if folder else "config.json"])


def elements(config: Mapping[str, Any]) -> dict[str, int]:
    """Elements by safetensors' type of a model on torch's meta device, which has no memory."""
    model = meta_model(config)
    floats, packed = sum(parameter.numel() for parameter in model.parameters()), 0
    if quantisation := config.get("quantization_config"):
        for name, layer in model.named_modules():
            if type(layer).__name__ == "Linear" and "lm_head" not in name:
                rows, columns = layer.in_features, layer.out_features
                groups = rows // quantisation["group_size"]
                packed += (rows + groups) * columns * quantisation["bits"] // 32  # weights, and zero points by group
                floats += groups * columns - rows * columns  # scales by group, in place of the weights
    stored = str(config.get("torch_dtype", "float32"))
    kind = {"bfloat16": "BF16", "float16": "F16"}.get(stored, "F32")
    return {kind: floats} | ({"I32": packed} if packed else {})


def meta_model(config: Mapping[str, Any]) -> Any:
    import diffusers
    import torch
    import transformers
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    options = {
        name: value
        for name, value in config.items()
        if name not in ("_class_name", "architectures", "model_type", "quantization_config", "torch_dtype")
    }
    with torch.device("meta"):
        if name := config.get("_class_name"):
            return getattr(diffusers, name).from_config(options)
        (architecture,) = config["architectures"]
        own = {"StableDiffusionSafetyChecker": StableDiffusionSafetyChecker}
        model_class = own.get(architecture) or getattr(transformers, architecture)
        return model_class(model_class.config_class(**options))
