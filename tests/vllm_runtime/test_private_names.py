"""vLLM's private names: those in use are listed, those that are listed exist, and a misfit leaves vLLM unpatched."""

from __future__ import annotations

import ast
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from deployments.vllm_runtime import cpu_shm_wakeup, cpu_worker, private_names, progress_loader
from deployments.vllm_runtime.private_names import (
    ALL_NAMES,
    CPU_WORKER,
    FEATURES,
    PROGRESS_LOADER,
    SHM_WAKEUP,
    TEXT_SEARCH,
    Feature,
    PrivateName,
    fault,
    fits,
)

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = sorted([*(ROOT / "deployments").rglob("*.py"), *(ROOT / "rbee_serve").rglob("*.py")])
EXPORTED = {"AsyncEngineArgs", "PoolingParams", "SamplingParams"}
"""Names of `vllm.__all__` that are in use."""


@pytest.mark.vllm  # only imported, which takes as long as a model
def test_the_installed_vllm_has_every_private_name_and_fits_every_feature() -> None:
    import vllm

    assert {name.path: reason for name in ALL_NAMES if (reason := fault(name))} == {}
    fits.cache_clear()
    assert all(fits(feature) for feature in FEATURES)
    assert set(vllm.__all__) >= EXPORTED


def used_names(source: str) -> Iterator[str]:
    """Every `module.name` of vLLM that a source imports, or takes from an imported module."""
    tree = ast.parse(source)
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "vllm":
                    modules[alias.asname or alias.name] = alias.name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in modules:
                yield f"{modules[name]}.{attribute}"
            case ast.Attribute(
                value=ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(module))]),
                attr=attribute,
            ) if module.split(".")[0] == "vllm":
                yield f"{module}.{attribute}"


def private_attributes(source: str) -> Iterator[str]:
    """Every `_name` that is taken from something else than `self`, `cls` or the module's own names."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                pass
            case ast.Attribute(attr=name) if name.startswith("_") and not name.startswith("__"):
                yield name


def test_the_source_uses_no_private_name_of_vllm_that_is_not_listed() -> None:
    listed = {f"{name.module}.{name.path.partition('.')[0]}" for name in ALL_NAMES}
    listed |= {f"vllm.{name}" for name in EXPORTED}
    found = {name for path in SOURCES for name in used_names(path.read_text())}
    assert found - listed == set()
    assert {"vllm.AsyncEngineArgs", "vllm.platforms.current_platform"} <= found
    assert f"{SHM_WAKEUP.names[0].module}.SpinCondition" in found


def test_modules_of_vllm_runtime_use_no_underscore_attribute_that_is_not_listed() -> None:
    listed = {name.path.rpartition(".")[2] for name in ALL_NAMES} | {"_exit"}  # os._exit
    found = {name for path in SOURCES if "vllm" in str(path) for name in private_attributes(path.read_text())}
    assert found - listed == set()
    assert "_apply_prompt_updates_via_text" in found


def test_names_are_found_in_every_form_of_import() -> None:
    source = """
import vllm.a.b as b
from vllm.c import d
b.e()
importlib.import_module("vllm.f").g
"""
    assert set(used_names(source)) == {"vllm.a.b.e", "vllm.c.d", "vllm.f.g"}


class Fields:
    """A class with an attribute of each kind."""

    annotated: int

    def __init__(self) -> None:
        self.assigned = 1

    def method(self, first: int, second: int = 2) -> None: ...


@pytest.mark.parametrize(
    ("path", "parameters", "reason"),
    [
        ("Fields.annotated", (), None),
        ("Fields.assigned", (), None),
        ("Fields.method", ("first",), None),
        ("Fields.method", ("second",), "does not take second"),
        ("Fields.annotated", ("first",), "does not take first"),
        ("Fields.other", (), "there is no fake.Fields.other"),
        ("Other.method", (), "there is no fake.Other"),
    ],
)
def test_a_probe_finds_attributes_fields_and_parameters(
    monkeypatch: pytest.MonkeyPatch, path: str, parameters: tuple[str, ...], reason: str | None
) -> None:
    monkeypatch.setitem(sys.modules, "fake", SimpleNamespace(Fields=Fields))
    found = fault(PrivateName("fake", path, "a test", parameters))
    assert (found is None) if reason is None else (found is not None and reason in found)


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
    [record] = [record for record in caplog.records if record.name == private_names.__name__]
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


@pytest.mark.parametrize("version", [(0, 31, 9), (0, 34, 0, "dev1"), (1, 0, 0), ()])
@pytest.mark.parametrize("feature", FEATURES)
def test_a_release_that_was_not_tried_is_not_patched(
    fake: Fake, caplog: pytest.LogCaptureFixture, version: tuple[int, ...], feature: Feature
) -> None:
    fake("vllm.config", version)
    assert not fits(feature)
    one_warning(caplog, feature, "its version is ")
