"""`rbee-serve gpu-check` from its command to its table, on a CPU."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.supervised import ROOT
from tests.supervisor.configurations import changed

WORKERS = """\
        - id: echo-0
          type: echo
          cpus: 0
        - id: broken-0
          type: echo
          cpus: 0
          engine: {load_error: the model is missing}
"""


@pytest.mark.ray
def test_every_worker_is_measured_alone_and_together_and_a_failure_has_its_reason(tmp_path: Path) -> None:
    file = changed(tmp_path, "        - id: echo-0\n          type: echo\n          cpus: 0\n", WORKERS)
    result = subprocess.run(
        [sys.executable, "-m", "rbee_serve.supervisor", "gpu-check", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 1, result.stderr
    rows = {tuple(line.split()[:2]): line for line in result.stdout.splitlines() if len(line.split()) > 2}
    number = r"\d+\.\d\d"
    for trial in ("alone", "together"):
        measured = re.fullmatch(
            rf"echo-0 +{trial} +{number} s +- +({number}) GB +{number} s +([\d.e+]+) tokens/s +({number}) s",
            rows["echo-0", trial],
        )
        assert measured, rows["echo-0", trial]
        assert 0.01 < float(measured[1]) < 10
        assert 500 < float(measured[2]) < 1100  # the request asks for 1,000 a second
        assert float(measured[3]) < 3
        assert rows["broken-0", trial].endswith("FAILED")
        assert re.search(rf"broken-0 {trial}: .*the model is missing", result.stdout)
