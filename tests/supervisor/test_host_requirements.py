"""What a machine must have for workers on GPUs: each thing that is missing is a sentence, before anything starts."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rbee_serve.errors import ConfigurationError
from rbee_serve.supervisor import host_requirements
from rbee_serve.supervisor.checks import CheckedConfig, check_file
from rbee_serve.supervisor.cli import main
from rbee_serve.supervisor.host_requirements import Host, host_faults, host_warnings, require_host, this_host
from rbee_serve.torch_build import TorchBuild
from tests.gpus.fake_nvml import FakeGpu, FakeNvml
from tests.supervisor.configurations import ECHO, written

CPU = TorchBuild("2.13.0+cpu", None)
CUDA = TorchBuild("2.13.0", (13, 0))
GOOD: dict[str, Any] = {"build": CUDA, "driver": (13, 0), "gpus": (("NVIDIA L4", (8, 9)),), "shm_bytes": 2 * 10**9}
"""A machine that has everything."""

LLM = "{id: llm-0, type: llm, model_ref: hf:a/b"
DRAW = "{id: draw-0, type: vision, task: generate, model_ref: hf:a/b"
EMBED = "{id: embed-0, type: embedding, model_ref: hf:a/b"


def configured(folder: Path, *workers: str) -> CheckedConfig:
    """A configuration with these workers, each without its closing brace."""
    listed = "".join(f"        - {worker}}}\n" for worker in workers)
    return check_file(written(folder, ECHO[: ECHO.index("        - id")] + listed))


@pytest.mark.parametrize(
    ("worker", "missing", "sentence"),
    [
        (f"{LLM}, gpus: 1", {"build": CPU}, "llm-0: the installed PyTorch is built for CPUs and cannot use a GPU; run"),
        (f"{DRAW}, gpus: 1", {"build": CPU}, "; run `make install EXTRAS=gpu,embedding,audio,vision`, or install '"),
        (f"{DRAW}, gpus: 1", {"driver": (12, 8)}, "draw-0: NVIDIA's driver supports CUDA 12.8, and the installed"),
        (f"{DRAW}, gpus: 0.5", {"gpus": (("Tesla P40", (6, 1)),)}, "draw-0: Tesla P40 has compute capability 6.1, and"),
        (f"{LLM}, gpus: 1", {"c_compiler": False}, "llm-0: vLLM needs a C compiler .*; apt install gcc libc6-dev$"),
        (f"{LLM}, gpus: 1", {"python_header": False}, r"vLLM needs Python\.h .*; apt install python3\.\d+-dev$"),
        (f"{EMBED}, gpus: 1, engine: {{name: vllm}}", {"c_compiler": False}, "embed-0: vLLM needs a C compiler"),
        (LLM, {}, "llm-0: the installed vLLM is built for GPUs and cannot run on a CPU; give the worker `gpus`"),
        (f"{EMBED}, engine: {{name: vllm}}", {}, "embed-0: the installed vLLM is built for GPUs"),
    ],
)
def test_each_thing_that_is_missing_is_one_sentence(
    worker: str, missing: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    checked, host = configured(tmp_path, worker), Host(**{**GOOD, **missing})
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        require_host(checked, host)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("worker", "host"),
    [
        (f"{LLM}, gpus: 2", GOOD),
        (f"{LLM}, gpus: 1", {**GOOD, "gpus": (("Tesla T4", (7, 5)),)}),
        (f"{LLM}, gpus: 1", {**GOOD, "driver": (13, 3)}),
        (LLM, {"build": CPU, "c_compiler": False, "python_header": False}),
        (DRAW, {"build": CPU, "driver": (12, 2), "gpus": GOOD["gpus"]}),
        (DRAW, {**GOOD, "driver": (12, 2), "c_compiler": False}),
        (EMBED, GOOD),
        (f"{DRAW}, gpus: 1", {**GOOD, "c_compiler": False, "python_header": False}),
        ("{id: own, type: 'tests.device_worker:SPEC', gpus: 1", {"build": CPU}),
        ("{id: echo-0, type: echo, gpus: 1", {"build": CPU}),
    ],
)
def test_a_worker_that_does_not_need_it_may_lack_it(worker: str, host: dict[str, Any], tmp_path: Path) -> None:
    assert host_faults(configured(tmp_path, worker), Host(**host)) == []


def test_without_a_driver_nothing_is_said_about_a_compiler(tmp_path: Path) -> None:
    host = Host(build=CUDA, c_compiler=False, python_header=False)
    assert host_faults(configured(tmp_path, f"{LLM}, gpus: 1"), host) == []


def test_one_sentence_names_all_workers_that_it_is_about(tmp_path: Path) -> None:
    checked = configured(tmp_path, f"{LLM}, gpus: 0.5", f"{DRAW}, gpus: 0.5", EMBED)
    assert [fault.partition(": ")[0] for fault in host_faults(checked, Host(**{**GOOD, "driver": (12, 0)}))] == [
        "llm-0, draw-0"
    ]


def test_little_shared_memory_is_a_warning_for_workers_with_several_gpus(tmp_path: Path) -> None:
    several, one = configured(tmp_path, f"{LLM}, gpus: 2"), configured(tmp_path, f"{LLM}, gpus: 1")
    small = Host(**{**GOOD, "shm_bytes": 67_108_864})
    (warning,) = host_warnings(several, small)
    assert warning == (
        "llm-0: the GPUs of a worker exchange data through /dev/shm, which has 67 MB instead of 1000; start the "
        "container with --shm-size=8g or --ipc=host"
    )
    assert host_warnings(one, small) == []
    assert host_warnings(several, Host(**GOOD)) == host_warnings(several, Host()) == []


@pytest.fixture
def fake_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeNvml(
        FakeGpu(name="NVIDIA L4"), FakeGpu(uuid="GPU-b", name="Tesla P40", capability=(6, 1)), cuda_driver=12040
    )
    monkeypatch.setitem(sys.modules, "pynvml", machine)


@pytest.mark.usefixtures("fake_gpus")
@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({}, ["NVIDIA L4", "Tesla P40"]),
        ({"CUDA_VISIBLE_DEVICES": "0"}, ["NVIDIA L4"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-b, 0"}, ["Tesla P40", "NVIDIA L4"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "7"}, []),
    ],
)
def test_the_driver_and_the_visible_gpus_are_read_from_nvml(environ: dict[str, str], names: list[str]) -> None:
    host = this_host(environ)
    assert host.driver == (12, 4)
    assert [name for name, _ in host.gpus] == names


def test_a_machine_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(FakeGpu(), broken=True))
    assert (this_host({}).driver, this_host({}).gpus) == (None, ())


def test_the_c_compiler_is_the_one_that_triton_would_take(tmp_path: Path) -> None:
    for name in ("gcc", "clang", "my-cc"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("")
        (folder / name).chmod(0o755)
    assert not this_host({"PATH": ""}).c_compiler
    assert this_host({"PATH": str(tmp_path / "gcc")}).c_compiler
    assert this_host({"PATH": str(tmp_path / "clang")}).c_compiler
    assert this_host({"PATH": "", "CC": str(tmp_path / "my-cc" / "my-cc")}).c_compiler
    assert not this_host({"PATH": str(tmp_path / "gcc"), "CC": "icc"}).c_compiler


def test_the_headers_are_those_of_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert not this_host({}).python_header
    (tmp_path / "Python.h").touch()
    assert this_host({}).python_header


def test_the_size_of_the_shared_memory_is_that_of_its_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"/dev/shm": SimpleNamespace(f_blocks=16_384, f_frsize=4096)}
    monkeypatch.setattr(os, "statvfs", sizes.__getitem__)
    assert this_host({}).shm_bytes == 67_108_864

    def missing(path: str) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "statvfs", missing)
    assert this_host({}).shm_bytes is None


def test_a_check_of_a_file_for_another_machine_succeeds_and_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rbee_serve.supervisor.cli.this_host", lambda: Host(build=CPU))
    path = configured(tmp_path, f"{DRAW}, gpus: 1").path
    assert main(["check", str(path)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rbee-serve: warning: this machine cannot serve draw-0: the installed PyTorch is built for")


def test_a_start_on_a_machine_that_lacks_something_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host_requirements, "installed_build", lambda: CPU)
    monkeypatch.setattr("rbee_serve.supervisor.serve.check_port_is_free", lambda host, port: None)
    path = configured(tmp_path, f"{DRAW}, gpus: 1").path
    assert main(["serve", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rbee-serve: draw-0: the installed PyTorch is built for CPUs and cannot use a GPU; run")
