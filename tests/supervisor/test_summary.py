"""The summary after the start."""

from __future__ import annotations

import shlex
from pathlib import Path

from deployments.echo import EchoRequest
from rbee_serve.config import AuthConfig
from rbee_serve.supervisor.application_client import open_client
from rbee_serve.supervisor.summary import request_line, summary
from tests.outside_worker import LetterRequest
from tests.supervisor.application import broken, running, up


def summary_of(script: list[dict[str, object]], token_file: Path | None = None) -> list[str]:
    with running([script], token_file) as application:
        checked = application.checked
        with open_client(checked) as client:
            readiness = {worker.id: worker for worker in client.ready().workers}
            return summary(client.workers(), readiness, checked.config, checked.worker_types)


def test_every_worker_has_a_line_and_a_request_can_be_pasted() -> None:
    lines = summary_of([up("echo-0"), up("echo-1")])
    assert lines[:3] == [
        "  echo-0  echo  echo  CPU-0  http://127.0.0.1:8000/workers/echo-0",
        "  echo-1  echo  echo  CPU-0  http://127.0.0.1:8000/workers/echo-1",
        "",
    ]
    assert lines[3].startswith("  curl -N http://127.0.0.1:8000/workers/echo-0/v1/inference -d '{")


def test_a_failed_worker_has_its_reason_and_the_request_goes_to_one_that_is_ready() -> None:
    lines = summary_of([broken("echo-0", "no such file"), up("echo-1")])
    assert lines[1] == "  echo-0  echo  echo  FAILED: no such file"
    assert "/workers/echo-1/v1/inference" in lines[3]


def test_the_request_reads_the_token_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "a token").write_text("s3cret\n")
    line = summary_of([up("echo-0"), up("echo-1")], tmp_path / "a token")[3]
    assert f"-H \"Authorization: Bearer $(head -n 1 '{tmp_path}/a token')\"" in line
    assert "s3cret" not in line


def test_the_request_reads_the_token_of_a_key_that_may_use_the_worker() -> None:
    keys = [{"name": "a", "token_file": "/a", "workers": ["echo-1"]}, {"name": "b", "token_file": "/b"}]
    auth = AuthConfig.model_validate({"keys": keys})
    assert [auth.token_file_for(worker_id) for worker_id in ("echo-0", "echo-1")] == [Path("/b"), Path("/a")]
    assert AuthConfig(keys=auth.keys[:1]).token_file_for("echo-0") is None


def test_a_quote_in_the_request_survives_the_shell() -> None:
    assert shlex.split(request_line("http://x", EchoRequest(prompt="it's"), None))[-1] == '{"prompt": "it\'s"}'


def test_a_file_in_the_request_is_a_placeholder() -> None:
    line = request_line("http://x", LetterRequest(book=b"abc", alphabet="a b"), None)
    assert line == "curl -N http://x/v1/inference -F book=@FILE -F 'alphabet=a b'"
