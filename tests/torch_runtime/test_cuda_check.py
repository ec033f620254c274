"""The sentence where PyTorch cannot use a GPU."""

from __future__ import annotations

import pytest

from deployments.torch_runtime.cuda_check import cuda_fault
from deployments.torch_runtime.device import torch_device
from rbee_serve.errors import ConfigurationError
from rbee_serve.torch_build import TorchBuild
from rbee_serve.worker.spec import Device

CPU = TorchBuild("2.13.0+cpu", None)
CUDA = TorchBuild("2.13.0", (13, 0))


@pytest.mark.parametrize(
    ("build", "driver", "sentence"),
    [
        (CPU, (13, 0), "is built for CPUs and cannot use a GPU; run `make install EXTRAS=gpu,"),
        (CUDA, (12, 4), "NVIDIA's driver supports CUDA 12.4, and the installed PyTorch is built for CUDA 13.0;"),
        (CUDA, None, "PyTorch finds no NVIDIA driver; nvidia-smi must work here"),
        (CUDA, (13, 1), "although NVIDIA's driver is new enough; compare CUDA_VISIBLE_DEVICES"),
    ],
)
def test_the_reason_is_the_build_the_driver_or_what_is_visible(
    build: TorchBuild, driver: tuple[int, int] | None, sentence: str
) -> None:
    assert sentence in cuda_fault(build, driver)


def test_an_engine_on_pytorch_is_refused_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("deployments.torch_runtime.cuda_check.installed_build", lambda: CPU)
    with pytest.raises(ConfigurationError, match="the installed PyTorch is built for CPUs and cannot use a GPU"):
        torch_device(Device("cuda"))
    assert torch_device(Device("cpu")) == "cpu"
