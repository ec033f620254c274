"""What is said when the start is over."""

from __future__ import annotations

import shlex
from pathlib import Path

from deployments.echo import EchoRequest
from rbee_serve.supervisor.readiness import ApplicationClient
from rbee_serve.supervisor.summary import request_line, summary
from tests.outside_worker import LetterRequest
from tests.supervisor.application import broken, running, up


def told(script: list[dict[str, object]], token_file: Path | None = None) -> list[str]:
    with running([script], token_file) as application:
        client = ApplicationClient(application.plan)
        plan = application.plan
        readiness = {worker.id: worker for worker in client.ready()}
        lines = summary(client.workers(), readiness, plan.config, plan.worker_types)
        client.close()
    return lines


def test_every_worker_has_a_line_and_a_request_can_be_pasted() -> None:
    lines = told([up("echo-0"), up("echo-1")])
    assert lines[:3] == [
        "  echo-0  echo  echo  CPU-0  http://127.0.0.1:8000/workers/echo-0",
        "  echo-1  echo  echo  CPU-0  http://127.0.0.1:8000/workers/echo-1",
        "",
    ]
    assert lines[3].startswith("  curl -N http://127.0.0.1:8000/workers/echo-0/v1/inference -d '{")


def test_a_worker_that_failed_says_why_and_the_request_goes_to_one_that_is_up() -> None:
    lines = told([broken("echo-0", "no such file"), up("echo-1")])
    assert lines[1] == "  echo-0  echo  echo  FAILED: no such file"
    assert "/workers/echo-1/v1/inference" in lines[3]


def test_the_token_is_read_from_its_file_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "a token").write_text("s3cret\n")
    line = told([up("echo-0"), up("echo-1")], tmp_path / "a token")[3]
    assert f"-H \"Authorization: Bearer $(head -n 1 '{tmp_path}/a token')\"" in line
    assert "s3cret" not in line


def test_a_quote_in_the_request_survives_the_shell() -> None:
    assert shlex.split(request_line("http://x", EchoRequest(prompt="it's"), None))[-1] == '{"prompt": "it\'s"}'


def test_a_file_in_the_request_is_one_of_the_readers_own() -> None:
    line = request_line("http://x", LetterRequest(book=b"abc", alphabet="a b"), None)
    assert line == "curl -N http://x/v1/inference -F book=@FILE -F 'alphabet=a b'"
