"""Memory checks before a load."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from rbee_serve.errors import InsufficientResources, InsufficientVram
from rbee_serve.model_files.memory_check import require_memory, weights_memory_bytes
from rbee_serve.worker.spec import Device
from tests.gpus.fake_nvml import FakeGpu, FakeNvml
from tests.model_files.tiny_models import entry, model_folder, safetensors_bytes


@pytest.mark.parametrize(("dtype", "expected"), [(None, 20), ("auto", 20), ("bfloat16", 12), ("float32", 24)])
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


def test_on_gpus_the_share_and_the_free_memory_count(monkeypatch: pytest.MonkeyPatch) -> None:
    empty, full = FakeGpu(10 * 10**9, 10**9), FakeGpu(10 * 10**9, 9 * 10**9, uuid="GPU-b")
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(empty, full))
    require_memory(Device("cuda"), {"weights": 8 * 10**9}, share=0.9)
    for device_id, share, name in (("0", 0.45, "GPU-0"), ("1", 0.9, "GPU-1"), ("GPU-b", 0.9, "GPU-b")):
        with pytest.raises(InsufficientVram, match=f"free for it on {name};"):
            require_memory(Device("cuda", (device_id,)), {"weights": 8 * 10**9}, share)
    require_memory(Device("cuda", ("0", "GPU-b")), {"weights": 9 * 10**9}, share=0.9)


def test_a_model_is_accepted_if_the_driver_reports_no_memory() -> None:
    require_memory(Device("cuda"), {"weights": psutil.virtual_memory().total * 1000})
