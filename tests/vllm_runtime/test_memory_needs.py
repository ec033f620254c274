"""What a model needs before vLLM loads it, with options that convert, quantise or offload its weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from deployments.vllm_runtime.memory_needs import GIB, memory_needs
from rbee_serve.errors import InsufficientVram
from rbee_serve.model_files.memory_check import require_memory
from rbee_serve.worker.spec import Device
from tests.gpus import fake_nvml
from tests.model_files.tiny_models import entry, model_folder, safetensors_bytes

ELEMENTS = 1000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """1,000 numbers as float32, and 8 bytes of integers."""
    folder = model_folder(tmp_path / "model")
    tensors = {"w": entry(0, 4 * ELEMENTS, (ELEMENTS,)), "packed": entry(4 * ELEMENTS, 4 * ELEMENTS + 8, (2,), "I32")}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors, bytes(4 * ELEMENTS + 8)))
    return folder


@pytest.mark.parametrize(
    ("options", "element_bytes"),
    [
        ({}, 2),
        ({"dtype": "auto"}, 2),
        ({"dtype": "float32"}, 4),
        ({"dtype": "half"}, 2),
        ({"quantization": "fp8"}, 1),
        ({"quantization": "fp8_per_tensor", "dtype": "bfloat16"}, 1),
        ({"quantization": "online", "quantization_config": {"linear": "fp8_per_block"}}, 1),
        ({"quantization": "mxfp4"}, 0.5),
        ({"quantization_config": {"moe": "nvfp4_per_token"}}, 0.5),
        ({"quantization": None, "dtype": None}, 2),
    ],
)
def test_weights_count_in_the_type_that_vllm_keeps_them_in(
    model: Path, options: dict[str, Any], element_bytes: float
) -> None:
    assert memory_needs(model, options) == {"weights": int(ELEMENTS * element_bytes) + 8}


def test_weights_that_are_stored_quantised_count_as_stored_and_the_others_in_half_precision(model: Path) -> None:
    (model / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}')
    assert memory_needs(model, {"quantization": "awq"}) == {"weights": 2 * ELEMENTS + 8}


def test_what_is_offloaded_to_the_host_is_not_needed(model: Path) -> None:
    one_gpu = {"cpu_offload_gb": 500 / GIB}
    assert memory_needs(model, one_gpu) == {"weights": 2 * ELEMENTS + 8 - 500}
    assert memory_needs(model, one_gpu | {"tensor_parallel_size": 2}) == {"weights": 2 * ELEMENTS + 8 - 1000}
    assert memory_needs(model, {"cpu_offload_gb": 10}) == {"weights": 0}
    assert memory_needs(model, {"offload_group_size": 8}) == {}


def test_each_gpu_has_a_kv_cache_of_the_given_size(model: Path) -> None:
    assert memory_needs(model, {"kv_cache_memory_bytes": 7, "tensor_parallel_size": 2})["KV cache"] == 14


def test_a_model_that_fits_once_it_is_quantised_or_offloaded_is_not_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbee_serve.model_files.memory_check.CONTEXT_BYTES", 0)
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml.FakeNvml(fake_nvml.FakeGpu(total=1500)))
    with pytest.raises(InsufficientVram):
        require_memory(Device("cuda", ("0",)), memory_needs(model, {}), 0.9)
    for options in ({"quantization": "fp8_per_tensor"}, {"cpu_offload_gb": 1}, {"offload_group_size": 4}):
        require_memory(Device("cuda", ("0",)), memory_needs(model, options), 0.9)
