"""The progress of loading weights into vLLM, counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.vllm_runtime.progress_loader import WeightsCount, layer_of, sizes_of
from rbee_serve.state import LoadProgress
from tests.model_files.tiny_models import entry, model_folder, safetensors_bytes

SIZES = {
    "model.embed_tokens.weight": 100,
    "model.layers.0.a": 10,
    "model.layers.0.b": 10,
    "model.layers.1.a": 10,
    "vision.blocks.0.mlp.experts.7.w": 5,
}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.down_proj.weight", "model.layers.3"),
        ("model.layers.12.mlp.experts.7.w1.weight", "model.layers.12"),
        ("vision_model.encoder.layers.0.norm.bias", "vision_model.encoder.layers.0"),
        ("lm_head.weight", None),
        ("7.weight", None),
    ],
)
def test_a_tensor_belongs_to_the_outermost_layer_in_its_name(name: str, layer: str | None) -> None:
    assert layer_of(name) == layer


def test_a_layer_counts_when_all_of_its_tensors_have_been_read() -> None:
    count = WeightsCount(SIZES)
    seen = []
    for name in [*SIZES, "model.layers.0.a", "unknown"]:
        count.read(name)
        progress = count.progress(2_500_000)
        seen.append((progress.layers_loaded, progress.bytes_done))
    assert seen == [(0, 100), (0, 110), (1, 120), (2, 130), (3, 135), (3, 135), (3, 135)]
    assert count.progress(2_500_000) == LoadProgress(
        stage="loading_to_vram", bytes_done=135, bytes_total=135, layers_loaded=3, layers_total=3, vram_mb=2
    )


def test_a_model_without_layers_has_no_layer_counts() -> None:
    progress = WeightsCount({"weight": 4}).progress(0)
    assert (progress.layers_loaded, progress.layers_total, progress.bytes_total) == (None, None, 4)


def test_the_tensors_of_the_files_that_vllm_reads_count(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    tensors = {"w": 16, "b": 4}
    other = safetensors_bytes({"other": entry()}, bytes(16))
    (folder / "model.fp32-00001-of-00001.safetensors").write_bytes(other)
    (folder / "lora").mkdir()
    (folder / "lora" / "adapter_model.safetensors").write_bytes(other)
    assert sizes_of(folder) == tensors
    (folder / "consolidated.safetensors").write_bytes(other)  # which vLLM prefers
    assert sizes_of(folder) == {"other": 16}
    (folder / "consolidated.safetensors").write_bytes(b"broken")
    assert sizes_of(folder) == {}
