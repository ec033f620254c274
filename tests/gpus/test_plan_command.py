"""`rbee-serve plan`, and the table of `rbee-serve check` where there is a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rbee_serve import nvml
from rbee_serve.supervisor.cli import main
from tests.gpus.fake_nvml import GIB, FakeGpu, FakeNvml
from tests.gpus.shipped import MODELS, OLD_FILE, ROOT, SHIPPED
from tests.model_files.tiny_models import model_folder
from tests.supervisor.configurations import ECHO, written

FACTS = ["--facts", str(MODELS)]


def with_worker(folder: Path, worker: str) -> Path:
    return written(folder, f"{ECHO}        - {worker}\n")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_fits_and_each_worker_has_its_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    gpus = [argument for size in SHIPPED[name] for argument in ("--gpu", size)]
    assert main(["plan", *gpus, *FACTS, str(ROOT / name)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = [line for line in captured.out.splitlines() if "llm-0" in line and "│" in line]
    assert [line.rstrip("│ ").endswith("fits") for line in lines] == [True] * len(SHIPPED[name])
    assert captured.out.count("GiB usable") == len(SHIPPED[name])
    assert "the configuration is valid" in captured.out


def test_the_old_file_is_refused_with_the_number_that_would_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--gpu", "24GiB", *FACTS, str(OLD_FILE)]) == 2
    captured = capsys.readouterr()
    refused = [line for line in captured.err.splitlines() if "warning" not in line]
    assert len(refused) == 4
    assert all("of GPU 0, and its share is" in line and ": set gpus: 0." in line for line in refused)
    assert "the workers of GPU 0 need 27.5 GiB together, and it has 21.9 GiB: move some" in captured.err
    assert "does not fit: gpus: 0." in captured.out
    assert "the configuration is valid" not in captured.out


def test_a_smaller_card_refuses_the_file_for_a_larger_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--gpu", "12GiB", *FACTS, str(ROOT / "serve_config.gpu.yaml")]) == 2
    assert "worker multimodal-0 needs" in capsys.readouterr().err
    assert main(["plan", "--gpu", "24GiB", *FACTS, str(ROOT / "configs/gpu-2x24gb.yaml")]) == 2
    assert "worker llm-0 has no GPU" in capsys.readouterr().err


def test_estimates_are_marked_and_every_figure_has_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--gpu", "24GiB", *FACTS, str(ROOT / "serve_config.gpu.yaml")]) == 0
    out = capsys.readouterr().out
    assert "* llm-0 activations, multimodal-0 activations: an estimate of vLLM's forward pass" in out
    assert "counted on torch's meta device" in out


def test_without_the_hub_a_sentence_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    path = with_worker(tmp_path, "{id: a, type: embedding, model_ref: 'hf:org/name', gpus: 0.5}")
    assert main(["plan", "--gpu", "24GiB", str(path)]) == 0
    captured = capsys.readouterr()
    assert "hf:org/name is not in the cache and the Hub was not reached" in captured.err
    assert "unknown: weights" in captured.out


def test_a_configuration_without_gpus_has_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--gpu", "24GiB", str(written(tmp_path, ECHO))]) == 0
    first, verdict = capsys.readouterr().out.splitlines()
    assert first.endswith(": no worker has `gpus`, so there is nothing to plan")
    assert "is valid" in verdict


@pytest.mark.parametrize("size", ["24", "big", "1MiB"])
def test_a_size_that_is_none_is_refused(size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = with_worker(tmp_path, "{id: a, type: echo, gpus: 0.5}")
    assert main(["plan", "--gpu", size, str(path)]) == 2
    assert capsys.readouterr().err.startswith("rbee-serve: --gpu: ")


@pytest.fixture
def local_model(tmp_path: Path) -> Path:
    config = '{"model_type": "bert", "hidden_size": 8, "intermediate_size": 32, "max_position_embeddings": 16}'
    return model_folder(tmp_path / "model", config)


@pytest.mark.parametrize(("share", "code"), [(0.5, 0), (0.02, 2)])
def test_check_plans_for_the_gpus_that_are_there(
    share: float,
    code: int,
    local_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(FakeGpu(total=24 * GIB, name="NVIDIA Test")))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = with_worker(tmp_path, f"{{id: a, type: embedding, model_ref: 'file:{local_model}', gpus: {share}}}")
    assert main(["check", str(path)]) == code
    captured = capsys.readouterr()
    assert "GPU 0: NVIDIA Test, 23.4 GiB usable" in captured.out
    assert ("worker a needs" in captured.err) == (code == 2)


@pytest.mark.parametrize(("used", "warned"), [(int(0.6 * GIB), False), (12 * GIB, True)])
def test_check_warns_of_other_processes_on_a_gpu(
    used: int,
    warned: bool,
    local_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(FakeGpu(total=24 * GIB, used=used)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = with_worker(tmp_path, f"{{id: a, type: embedding, model_ref: 'file:{local_model}', gpus: 0.6}}")
    assert main(["check", str(path)]) == 0
    sentence = "other processes use 11.4 GiB of GPU 0, of which the shares leave 9.4 GiB; stop them, or lower `gpus`"
    assert (sentence in capsys.readouterr().err) == warned


def test_check_sees_only_the_gpus_that_are_visible(
    local_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(FakeGpu(), FakeGpu(uuid="GPU-b", name="NVIDIA Second")))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    path = with_worker(tmp_path, f"{{id: a, type: embedding, model_ref: 'file:{local_model}', gpus: 1}}")
    assert main(["check", str(path)]) == 0
    assert "GPU 0: NVIDIA Second" in capsys.readouterr().out


def test_check_warns_only_where_other_machines_may_have_the_gpus(
    local_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(FakeGpu()))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    worker = f"{{id: a, type: embedding, model_ref: 'file:{local_model}', gpus: 1, replicas: 2}}"
    path = with_worker(tmp_path, worker)
    assert main(["check", str(path)]) == 0
    assert "warning: worker a #2 has no GPU: the 1 GPU is given to the others" in capsys.readouterr().err
    assert main(["plan", "--gpu", "24GiB", str(path)]) == 2
    assert "warning" not in capsys.readouterr().err


def test_check_without_a_gpu_has_no_table(
    local_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(broken=True))
    assert nvml.gpus() == []
    path = with_worker(tmp_path, f"{{id: a, type: embedding, model_ref: 'file:{local_model}', gpus: 0.02}}")
    assert main(["check", str(path)]) == 0
    assert "GiB" not in capsys.readouterr().out


def test_a_plan_imports_neither_ray_nor_a_model_library() -> None:
    arguments = ["plan", "--gpu", "24GiB", *FACTS, str(ROOT / "serve_config.gpu.yaml")]
    program = (
        f"import sys\nfrom rbee_serve.supervisor.cli import main\nassert main({arguments!r}) == 0\n"
        "assert not {'ray', 'torch', 'vllm', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
