"""The environment variables for Ray and the replicas, and the warning about missing ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import rbee_serve.ray_settings
from deployments.app import _worker_options
from rbee_serve.config import WorkerConfig
from rbee_serve.ray_settings import REPLICA_SETTINGS, SETTINGS, set_missing, warn_of_missing
from rbee_serve.worker.registry import load_spec

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(rbee_serve.ray_settings.__file__)
PROGRAMS = {".py", ".ipynb", ".yaml", ".yml", ".toml", ".sh", ""}
"""Endings of the files that could set a variable; documents may name them."""
PREFIXES = re.compile("RAY_|OMP_|CUDA_")


def test_missing_settings_for_speed_are_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_missing({"RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.1"})
    [record] = caplog.records
    message = record.getMessage()
    assert record.levelname == "WARNING"
    assert "\n" not in message
    assert "rbee-serve serve FILE" in message
    assert "RAY_SERVE_THROUGHPUT_OPTIMIZED=1 RAY_SERVE_ENABLE_DIRECT_INGRESS=0" in message
    assert "RAY_SERVE_CONTROL_LOOP_INTERVAL_S" not in message
    assert "RAY_AUTH_MODE" not in message


def test_nothing_is_logged_where_all_are_set(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_missing({setting.name: "whatever" for setting in SETTINGS if setting.speed})
    assert caplog.records == []


def test_variables_that_are_set_or_left_out_are_not_changed() -> None:
    environ = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
    set_missing(environ, leave_out={"RAY_AUTH_MODE"})
    assert environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "0"
    assert set(environ) == {setting.name for setting in SETTINGS} - {"RAY_AUTH_MODE"}


def test_replicas_number_gpus_as_the_driver_does() -> None:
    worker = WorkerConfig(id="w", type="echo", gpus=1)
    environment = _worker_options(worker, load_spec("deployments.echo:SPEC"))["ray_actor_options"]["runtime_env"]
    assert environment["env_vars"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_no_other_file_writes_a_setting() -> None:
    """A test may set a variable to another value; the value of the table stands in the table only."""
    table = [(re.escape(setting.name), re.escape(setting.value)) for setting in (*SETTINGS, *REPLICA_SETTINGS)]
    written = re.compile("|".join(rf"""{name}\b['"\]]*\s*[=:,]\s*['"]?{value}\b""" for name, value in table))
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in programs()
        if path != TABLE
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if PREFIXES.search(line) and written.search(line) and not line.lstrip().startswith("assert ")
    ]
    assert found == []


def programs() -> Iterator[Path]:
    for entry in ROOT.iterdir():
        if entry.is_dir() and not entry.name.startswith("."):
            yield from (path for path in entry.rglob("*") if path.is_file() and path.suffix in PROGRAMS)
        elif entry.is_file() and entry.suffix in PROGRAMS:
            yield entry
    yield from (path for path in (ROOT / ".ci").rglob("*") if path.is_file())
