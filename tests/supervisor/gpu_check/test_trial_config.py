"""The configurations of the trials."""

from __future__ import annotations

from pathlib import Path

import yaml

from rbee_serve.supervisor.checks import check_file
from rbee_serve.supervisor.gpu_check.trial_config import trial_config, with_helpers
from tests.supervisor.configurations import written

FILE = """\
http_options: {host: 0.0.0.0, port: 8000, request_timeout_s: 60}
logging_config: {log_level: WARNING}
applications:
  - name: rbee
    route_prefix: /
    import_path: deployments.app:build_app
    args:
      auth: {token_file: TOKEN}
      orchestrator: {callback_url: "http://127.0.0.1:1/ready"}
      public_url: https://models.example.com
      limits: {max_body_bytes: 1000000}
      workers:
        - {id: chat, type: multimodal, model_ref: "hf:org/model", uses: {audio: voice}}
        - {id: voice, type: audio, task: generate}
        - {id: echo-0, type: echo, cpus: 0}
    deployments:
      - {name: echo-0, health_check_period_s: 5}
      - {name: voice, health_check_period_s: 7}
"""


def test_a_trial_has_one_worker_and_those_that_it_uses(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a secret of an operator")
    checked = check_file(written(tmp_path, FILE.replace("TOKEN", str(token))))
    assert with_helpers("chat", checked.config) == ["chat", "voice"]
    assert with_helpers("echo-0", checked.config) == ["echo-0"]
    trial = trial_config(checked, with_helpers("chat", checked.config), 4321)
    [application] = trial["applications"]
    assert [worker["id"] for worker in application["args"]["workers"]] == ["chat", "voice"]
    assert [override["name"] for override in application["deployments"]] == ["voice"]
    again = check_file(written(tmp_path, yaml.safe_dump(trial)))
    assert again.base_url == "http://127.0.0.1:4321"
    assert again.config.limits.max_body_bytes == 1_000_000


def test_a_trial_is_reached_by_nobody_else_and_reports_to_nobody(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a secret of an operator")
    checked = check_file(written(tmp_path, FILE.replace("TOKEN", str(token))))
    trial = trial_config(checked, ["echo-0"], 4321)
    assert trial["http_options"] == {"host": "127.0.0.1", "port": 4321, "request_timeout_s": 60}
    assert trial["logging_config"] == {"log_level": "WARNING"}
    assert set(trial["applications"][0]["args"]) == {"workers", "limits"}
    assert checked.document["applications"][0]["args"]["auth"]  # the file itself is as it was
