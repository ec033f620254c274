"""Creates `.venv` and installs rbee-serve into it. Run by `make install`; needs Python 3.11, pip and a package index.

    python3 scripts/install.py --extras cpu,embedding,audio,vision,demo,bench,dev

uv installs the packages, because pip takes ten times as long. uv does not read pip's settings, so they are passed on.
The CPU build of PyTorch is not on the package index: it is taken from the sources in pip's settings (a folder named by
find-links, a mirror), else from PyTorch's own index for CPU builds, which uv knows.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"

Command = list[str | Path]
UV_INSTALL: Command = [VENV / "bin" / "uv", "pip", "install", "--python", VENV_PYTHON]

NO_CPU_TORCH = """\
The CPU build of PyTorch ({torch}) was found neither on your package index nor on PyTorch's own index for CPU builds. \
Put its wheel for this Python into a folder and run: PIP_FIND_LINKS=/that/folder make install"""


class InstallError(Exception):
    """The installation failed; the message states what to do."""


def main() -> int:
    """Install; return the exit status."""
    parser = argparse.ArgumentParser(description="Install rbee-serve into .venv.")
    parser.add_argument(
        "--extras", default="cpu,embedding,audio,vision,demo,bench,dev", help="extras of pyproject.toml: cpu or gpu, …"
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
    """Install everything; existing packages are kept."""
    if "cpu" in extras and "gpu" in extras:
        raise InstallError("the extras cpu and gpu exclude each other: both install a module named vllm; choose one")
    kind = "-gpu" if "gpu" in extras else ""
    constraints = REQUIREMENTS / f"constraints{kind}.txt"
    pins = read_pins(constraints)

    make_venv()
    run([VENV_PYTHON, "-m", "pip", "install", "--quiet", f"uv=={pins['uv']}"], "uv could not be installed with pip")
    environment = {**os.environ, **settings_for_uv()}
    command: Command = [*UV_INSTALL, "--constraint", constraints, "--override", REQUIREMENTS / f"overrides{kind}.txt"]
    if "cpu" in extras:
        command += find_cpu_torch(f"torch=={pins['torch']}+cpu", environment)
    target = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    run(
        [*command, "--editable", target],
        "the packages could not be installed; the reason is in the output of uv above",
        environment,
    )
    compile_packages()


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
    library = next((VENV / "lib").glob("python3*/site-packages"))
    succeeds([VENV_PYTHON, "-m", "compileall", "-q", "-j", "0", library])


def succeeds(command: Command, environment: dict[str, str] | None = None) -> bool:
    """Whether a command succeeds. Its output is discarded."""
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def run(command: Command, reason: str, environment: dict[str, str] | None = None) -> None:
    """Run a command with visible output; raises `InstallError` with the reason if it fails."""
    if subprocess.run(command, env=environment).returncode != 0:
        raise InstallError(reason)


if __name__ == "__main__":
    sys.exit(main())
