"""vLLM's settings in the environment of an engine."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from deployments.vllm_runtime.vllm_engine import ENVIRONMENT

pytestmark = pytest.mark.vllm


def test_vllm_knows_every_setting() -> None:
    from vllm import envs

    assert set(ENVIRONMENT) <= set(envs.environment_variables)


def test_vllm_itself_would_sample_with_flashinfer_although_nothing_can_compile_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, where FlashInfer's package is always installed and a CUDA toolkit is not."""
    from vllm.v1.sample.ops import topk_topp_sampler

    gpu = SimpleNamespace(is_cuda=lambda: True)
    monkeypatch.setattr(topk_topp_sampler, "current_platform", gpu)
    # `None` makes the import fail, which shows that vLLM goes for FlashInfer.
    monkeypatch.setitem(sys.modules, "vllm.v1.attention.backends.flashinfer", None)
    monkeypatch.delenv("VLLM_USE_FLASHINFER_SAMPLER", raising=False)
    with pytest.raises(ImportError):
        topk_topp_sampler.flashinfer_sampler_supported()
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", ENVIRONMENT["VLLM_USE_FLASHINFER_SAMPLER"])
    assert not topk_topp_sampler.flashinfer_sampler_supported()
