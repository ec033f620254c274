"""A worker type whose libraries are not installed: the remedy is the extra for its device."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from deployments.echo import SPEC
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.replica.loading import load
from rbee_serve.worker.registry import extras_for
from rbee_serve.worker.spec import Device, LoadContext


@pytest.mark.parametrize(
    ("accelerator", "extra", "remedy"),
    [
        ("cuda", "cpu,vision,audio", "pip install 'rbee-serve[gpu,vision,audio]'"),
        ("cpu", "cpu,vision,audio", "pip install 'rbee-serve[cpu,vision,audio]'"),
        ("cuda", "embedding", "pip install 'rbee-serve[embedding]'"),
        ("cuda", None, "install no_such_library"),
    ],
)
async def test_the_extra_to_install_is_the_one_for_the_device(accelerator: str, extra: str | None, remedy: str) -> None:
    spec = replace(SPEC, modules=("no_such_library",), extra=extra)
    context = LoadContext(WorkerConfig(id="a", type="echo"), Device(accelerator), lambda progress: None)
    with pytest.raises(ConfigurationError, match=f"^worker a: .* is not installed; {re.escape(remedy)}$"):
        await load("", spec, context)


def test_only_the_extra_for_cpus_has_another_name_for_gpus() -> None:
    assert extras_for("cuda", "cpu") == "gpu"
    assert extras_for("metal", "cpu") == "cpu"
    assert extras_for("cuda", "audio,cpu") == "audio,gpu"
