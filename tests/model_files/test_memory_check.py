"""Memory checks before a load."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from deployments.audio.faster_whisper_engine import weights_bytes
from rbee_serve.errors import InsufficientResources, InsufficientVram
from rbee_serve.gpu_budget import CONTEXT_BYTES
from rbee_serve.model_files.memory_check import ctranslate2_memory_bytes, require_memory, weights_memory_bytes
from rbee_serve.worker.spec import Device
from tests.gpus.fake_nvml import GIB, FakeGpu, FakeNvml
from tests.model_files.tiny_models import ctranslate2_bytes, entry, model_folder, safetensors_bytes


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(None, 20), ("auto", 20), ("bfloat16", 12), ("float32", 24), ("float8_e4m3fn", 6), ("float4_e2m1fn_x2", 3)],
)
def test_floats_count_as_the_dtype_they_are_loaded_in(tmp_path: Path, dtype: str | None, expected: int) -> None:
    assert weights_memory_bytes(model_folder(tmp_path), dtype) == expected


def test_quantised_weights_count_as_stored(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "model.safetensors").write_bytes(safetensors_bytes({"w": entry(0, 4, (4,), "I8")}, bytes(4)))
    assert weights_memory_bytes(tmp_path, "float32") == 4


def test_a_model_larger_than_the_memory_is_refused_with_the_numbers() -> None:
    require_memory(Device("cpu"), {"weights": 1000})
    with pytest.raises(InsufficientResources, match=r"needs 900,000\.0 GB of weights and 1\.0 GB of KV cache, but "):
        require_memory(Device("cpu"), {"weights": 900_000 * 10**9, "KV cache": 10**9})


def gpus(monkeypatch: pytest.MonkeyPatch, *gpus: FakeGpu) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(*gpus))


def test_on_a_gpu_the_budget_of_the_share_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, FakeGpu(total=10 * GIB))
    device = Device("cuda", ("0",), 0.5)
    require_memory(device, {"weights": 10 * GIB // 2 - CONTEXT_BYTES})
    with pytest.raises(InsufficientVram, match=r"needs 4\.9 GB of weights, but 4\.8 GB are free for it on GPU-0;"):
        require_memory(device, {"weights": 10 * GIB // 2 - CONTEXT_BYTES + 10**8})


def test_on_a_gpu_the_limit_of_an_engine_may_replace_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, FakeGpu(total=10 * GIB))
    require_memory(Device("cuda", ("0",), 0.5), {"weights": 7 * GIB}, share=0.7)
    with pytest.raises(InsufficientVram):
        require_memory(Device("cuda", ("0",), 0.5), {"weights": 7 * GIB + 1}, share=0.7)


def test_on_a_gpu_that_others_use_the_free_memory_counts_without_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, FakeGpu(), FakeGpu(total=10 * GIB, used=8 * GIB))
    require_memory(Device("cuda", ("1",)), {"weights": 2 * GIB - CONTEXT_BYTES})
    with pytest.raises(InsufficientVram, match="free for it on GPU-1;"):
        require_memory(Device("cuda", ("1",)), {"weights": 2 * GIB - CONTEXT_BYTES + 1})
    gpus(monkeypatch, FakeGpu(total=10 * GIB, used=10 * GIB))
    with pytest.raises(InsufficientVram, match=r"but 0\.0 GB are free"):
        require_memory(Device("cuda", ("0",)), {"weights": 1})


def test_several_gpus_hold_equal_parts_so_the_one_with_the_least_memory_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus(monkeypatch, FakeGpu(total=80 * GIB), FakeGpu(total=24 * GIB, used=4 * GIB))
    device = Device("cuda", ("0", "1"))
    require_memory(device, {"weights": 2 * (20 * GIB - CONTEXT_BYTES)})
    with pytest.raises(InsufficientVram, match="on GPU-0, GPU-1;"):
        require_memory(device, {"weights": 2 * (20 * GIB - CONTEXT_BYTES) + 1})


def test_a_model_is_accepted_if_the_driver_reports_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(broken=True))
    require_memory(Device("cuda", ("0",)), {"weights": psutil.virtual_memory().total * 1000})


@pytest.mark.parametrize(
    ("compute_type", "expected"),
    [
        ("float16", 12), ("bfloat16", 12), ("float32", 24), ("int8", 6), ("int8_float16", 6), ("int16", 12),
    ],
)  # fmt: skip
def test_a_ctranslate2_model_counts_in_its_compute_type(tmp_path: Path, compute_type: str, expected: int) -> None:
    (tmp_path / "model.bin").write_bytes(ctranslate2_bytes(dims=(2, 3)))  # six numbers in float16
    assert ctranslate2_memory_bytes(tmp_path / "model.bin", compute_type) == expected


def test_what_ctranslate2_cannot_quantise_counts_in_its_float_type(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(ctranslate2_bytes(dims=(6,)))
    found = [ctranslate2_memory_bytes(tmp_path / "model.bin", name) for name in ("int8", "int8_float16", "float16")]
    assert found == [24, 12, 12]


def test_a_ctranslate2_model_of_an_automatic_type_counts_as_stored(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(ctranslate2_bytes(dims=(20, 30)))
    assert 1200 < ctranslate2_memory_bytes(tmp_path / "model.bin", "auto") < 1300


def test_each_gpu_has_a_copy_of_a_whisper_model_on_ctranslate2(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(ctranslate2_bytes(dims=(2, 3)))
    assert weights_bytes(tmp_path / "model.bin", "float16", Device("cuda", ("0", "1"))) == 24
    assert weights_bytes(tmp_path / "model.bin", "int8", Device("cpu")) == (tmp_path / "model.bin").stat().st_size
