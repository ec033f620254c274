"""Each patch steps back where vLLM does not fit it: one warning, and vLLM works as it does without the patch."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from deployments.vllm_runtime import cpu_shm_wakeup, cpu_worker, private_api, progress_loader, stop_hold_back
from deployments.vllm_runtime.private_api import (
    CPU_WORKER,
    FEATURES,
    PROGRESS_LOADER,
    SHM_WAKEUP,
    STOP_HOLD_BACK,
    TEXT_SEARCH,
    Feature,
    fits,
)

Fake = Callable[..., ModuleType]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """Replaces a module of vLLM, and vLLM itself by one of the given version."""

    def make(name: str, version: tuple[int, ...] = (0, 32, 0), **attributes: Any) -> ModuleType:
        vllm = ModuleType("vllm")
        vllm.__dict__["__version_tuple__"] = version
        for known in [module for module in sys.modules if module.split(".")[0] == "vllm"]:
            monkeypatch.delitem(sys.modules, known)
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            monkeypatch.setitem(sys.modules, path, vllm if end == 1 else ModuleType(path))
        module = sys.modules[name]
        vars(module).update(attributes)
        return module

    fits.cache_clear()
    yield make
    fits.cache_clear()
    progress_loader.register_loader.cache_clear()


class OtherSpin:
    """A `SpinCondition` of another release: no notify address."""

    def __init__(self, is_reader: bool, context: object) -> None: ...


def one_warning(caplog: pytest.LogCaptureFixture, feature: Feature, reason: str) -> None:
    [record] = [record for record in caplog.records if record.name == private_api.__name__]
    assert record.levelno == logging.WARNING
    assert reason in record.message
    assert record.message.endswith(feature.fallback)


def test_another_queue_is_left_as_it_is(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = fake("vllm.distributed.device_communicators.shm_broadcast", SpinCondition=OtherSpin)
    monkeypatch.setattr(cpu_shm_wakeup, "_on_cpu", lambda: True)
    for _ in range(2):
        cpu_shm_wakeup.patch_shm_wait()
    assert module.__dict__["SpinCondition"] is OtherSpin
    one_warning(caplog, SHM_WAKEUP, "SpinCondition.__init__ does not take is_reader, context, notify_address")


def test_another_loader_is_not_used_and_weights_are_loaded_by_vllm_s_own(
    fake: Fake, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class OtherLoader:
        def __init__(self, load_config: object) -> None: ...

        def download_model(self, model_config: object) -> None: ...

    registered: list[str] = []

    def register_model_loader(load_format: str) -> Callable[[Any], None]:
        return lambda loader: registered.append(load_format)

    fake(
        "vllm.model_executor.model_loader",
        DefaultModelLoader=OtherLoader,
        register_model_loader=register_model_loader,
    )
    progress_loader.register_loader()
    assert registered == []
    assert progress_loader.load_format(tmp_path) == "safetensors"
    (tmp_path / "consolidated.safetensors").touch()
    assert progress_loader.load_format(tmp_path) == "mistral"
    one_warning(caplog, PROGRESS_LOADER, "there is no vllm.model_executor.model_loader.DefaultModelLoader.get_all")


def test_another_worker_class_is_left_to_vllm_and_so_are_its_reserved_cores(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(cpu_worker.RESERVED_CORES, raising=False)
    fake("vllm.v1.worker.cpu_worker", CPUWorker=type("CPUWorker", (), {}))
    options = {"worker_cls": cpu_worker.CLASS, "enforce_eager": True}
    found = cpu_worker.without_unfit_worker(options)
    cpu_worker.use_all_cores(found)
    assert found == {"enforce_eager": True}
    assert cpu_worker.RESERVED_CORES not in os.environ
    one_warning(caplog, CPU_WORKER, "there is no vllm.v1.worker.cpu_worker.CPUWorker.execute_model")
    other = {"worker_cls": "other.Worker"}
    assert cpu_worker.without_unfit_worker(other) == other


def test_another_processor_keeps_its_search(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake("vllm.multimodal.processing.processor", BaseMultiModalProcessor=type("BaseMultiModalProcessor", (), {}))
    from deployments.vllm_runtime.media_renderer import MediaRenderer

    monkeypatch.setitem(sys.modules, "vllm.exceptions", SimpleNamespace(VLLMClientError=KeyError))
    search = object()
    processor = SimpleNamespace(
        info=SimpleNamespace(allowed_mm_limits={"image": 1}), _apply_prompt_updates_via_text=search
    )
    engine: Any = SimpleNamespace(llm=SimpleNamespace(renderer=SimpleNamespace(get_mm_processor=lambda: processor)))
    renderer = MediaRenderer(engine)
    assert not renderer.text_search_off
    assert processor._apply_prompt_updates_via_text is search
    one_warning(caplog, TEXT_SEARCH, "there is no vllm.multimodal.processing.processor.BaseMultiModalProcessor._apply")


def test_another_detokenizer_keeps_its_rule(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    class OtherDetokenizer:
        def get_next_output_text(self, finished: bool) -> str:
            return ""

    rule = OtherDetokenizer.get_next_output_text
    fake("vllm.v1.engine.detokenizer", BaseIncrementalDetokenizer=OtherDetokenizer)
    stop_hold_back.patch_stop_hold_back()
    assert OtherDetokenizer.get_next_output_text is rule
    one_warning(caplog, STOP_HOLD_BACK, "get_next_output_text does not take finished, delta")


@pytest.mark.parametrize("version", [(0, 31, 9), (0, 34, 0, "dev1"), (1, 0, 0), ()])
@pytest.mark.parametrize("feature", FEATURES)
def test_a_release_that_was_not_tried_is_not_patched(
    fake: Fake, caplog: pytest.LogCaptureFixture, version: tuple[int, ...], feature: Feature
) -> None:
    fake("vllm.config", version)
    assert not fits(feature)
    one_warning(caplog, feature, "its version is ")
