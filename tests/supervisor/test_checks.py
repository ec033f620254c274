"""The messages about faults in `serve_config.yaml`, before anything starts."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rbee_serve.errors import ConfigurationError
from rbee_serve.supervisor import checks
from rbee_serve.supervisor.cli import main
from tests.supervisor.configuration_faults import FAULTS
from tests.supervisor.configurations import ECHO, changed, written

Check = Callable[[Path], list[str]]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs `rbee-serve check` and returns its errors, with file names without their folder; it must exit with 2."""

    def run(path: Path) -> list[str]:
        assert main(["check", str(path)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        return [line.replace(f"{path.parent}/", "") for line in captured.err.splitlines()]

    return run


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_sentence_with_its_line_and_path(fault: str, tmp_path: Path, check: Check) -> None:
    old, new, sentence = FAULTS[fault]
    assert check(changed(tmp_path, old, new)) == sentence.splitlines()


def test_every_wrong_key_has_a_line_of_its_own(tmp_path: Path, check: Check) -> None:
    path = changed(tmp_path, "cpus: 0", "cpu: 0\n          gpu: 1")
    assert check(path) == [
        "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].cpu: unknown key; did you mean cpus?",
        "rbee-serve: serve_config.yaml:13: applications[0].args.workers[0].gpu: unknown key; did you mean gpus?",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "rbee-serve: serve_config.yaml: is empty; it must at least have the key applications"),
        ("# comment", "rbee-serve: serve_config.yaml: is empty; it must at least have the key applications"),
        ("a: &x [*x]", "rbee-serve: serve_config.yaml:1: a[0]: refers to itself"),
        ("? [a]\n: 4", "rbee-serve: serve_config.yaml:1: is not valid YAML: found unhashable key"),
        ("- a", "rbee-serve: serve_config.yaml: holds no mapping; it must at least have the key applications"),
        ("applications: []", "rbee-serve: serve_config.yaml:1: applications: must not be empty"),
        ("applications: [1]", "rbee-serve: serve_config.yaml:1: applications[0]: must be a mapping"),
        ("applications: [{}]", "rbee-serve: serve_config.yaml:1: applications[0].import_path: is missing"),
        ("a: \x00", "rbee-serve: serve_config.yaml: is not valid YAML"),
        ("a: " + "[" * 5000, "rbee-serve: serve_config.yaml: is not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_sentence(
    text: str, sentence: str, tmp_path: Path, check: Check
) -> None:
    [line] = check(written(tmp_path, text))
    assert line.startswith(sentence)


def test_many_references_to_anchors_take_no_time(tmp_path: Path) -> None:
    levels = "\n".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 20))
    with pytest.raises(ConfigurationError, match="unknown key"):
        checks.check_file(written(tmp_path, f"x0: &x0 [a]\n{levels}\n{ECHO}"))


def test_a_file_with_a_byte_order_mark_an_anchor_and_a_merge_is_accepted(tmp_path: Path) -> None:
    text = ECHO.replace("- id: echo-0", "- &first\n          id: echo-0") + ("        - {<<: *first, id: echo-1}\n")
    workers = checks.check_file(written(tmp_path, f"\ufeff{text}")).config.workers
    assert [(worker.id, worker.type) for worker in workers] == [("echo-0", "echo"), ("echo-1", "echo")]


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, check: Check) -> None:
    assert check(tmp_path / "none.yaml") == ["rbee-serve: none.yaml: cannot be read: No such file or directory"]
    (tmp_path / "serve_config.yaml").write_bytes(b"\xff\xfe")
    assert check(tmp_path / "serve_config.yaml") == ["rbee-serve: serve_config.yaml: is not a text file"]


def test_an_exception_in_the_builders_module_has_its_location(
    tmp_path: Path, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_app.py").write_text("import json\n\njson.nothing\n")
    monkeypatch.syspath_prepend(tmp_path)
    [line] = check(changed(tmp_path, "deployments.app:build_app", "their_app:build"))
    assert line == (
        "rbee-serve: serve_config.yaml:7: applications[0].import_path: their_app cannot be imported: "
        "AttributeError: module 'json' has no attribute 'nothing' (their_app.py:3)"
    )


def test_a_package_that_shadows_another_one_is_named(
    tmp_path: Path, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_deployments").mkdir()
    (tmp_path / "their_deployments" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    [line] = check(changed(tmp_path, "deployments.app:build_app", "their_deployments.app:build_app"))
    assert line.endswith(
        "there is no module their_deployments.app here or in the environment; "
        "the package their_deployments was found in their_deployments"
    )


def test_a_good_file_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, ECHO)
    assert main(["check", str(path)]) == 0
    message = f"{path}: the configuration is valid; it serves echo-0 (echo) on http://127.0.0.1:8000\n"
    assert capsys.readouterr().out == message


def test_the_files_of_this_repository_are_accepted() -> None:
    root = Path(__file__).resolve().parents[2]
    for path in (*root.glob("serve_config*.yaml"), *root.glob("configs/*.yaml")):
        assert checks.check_file(path).config.workers, path


def test_without_http_options_the_host_is_the_loopback_address(tmp_path: Path) -> None:
    checked = checks.check_file(written(tmp_path, ECHO[ECHO.index("applications") :]))
    assert checked.document["http_options"] == {
        "host": "127.0.0.1",
        "port": 8000,
    }  # Ray Serve itself would take 0.0.0.0


def test_with_a_token_the_host_may_be_any_and_the_supervisor_uses_the_loopback_address(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    text = ECHO.replace("127.0.0.1", "0.0.0.0").replace(
        "workers:", f"auth: {{token_file: {tmp_path}/token}}\n      workers:"
    )
    checked = checks.check_file(written(tmp_path, text))
    assert (checked.host, checked.base_url) == ("0.0.0.0", "http://127.0.0.1:8000")


def test_a_check_imports_neither_ray_nor_a_model_library(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom rbee_serve.supervisor.cli import main\n"
        f"assert main(['check', {str(written(tmp_path, ECHO))!r}]) == 0\n"
        "assert not {'ray', 'torch', 'vllm', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_a_taken_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            ConfigurationError, match=f"^port {port} on 127.0.0.1 is taken by another program; stop it, or"
        ):
            checks.check_port_is_free("127.0.0.1", port)
    checks.check_port_is_free("127.0.0.1", port)


@pytest.mark.parametrize("host", ["203.0.113.1", "no such host"])
def test_a_host_of_another_machine_is_one_sentence(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^http_options\.host: "):
        checks.check_port_is_free(host, 8000)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ("token_file: FOLDER/none", "token_file: FOLDER/none cannot be read: No such file or directory"),
        ("token_file: FOLDER/empty", "token_file: the first line of FOLDER/empty is empty; write a token there"),
        (
            "ca_file: FOLDER/empty",
            ("ca_file: FOLDER/empty has no certificate in PEM form that can be read; it begins with BEGIN CERTIFICATE"),
        ),
    ],
)
def test_a_file_for_the_orchestrator_that_cannot_be_used_is_refused_by_line_and_key(
    options: str, fault: str, check: Check, tmp_path: Path
) -> None:
    (tmp_path / "empty").touch()
    text = f"orchestrator: {{callback_url: 'https://hive', {options}}}\n      workers:".replace("FOLDER", str(tmp_path))
    assert check(changed(tmp_path, "workers:", text)) == [
        f"rbee-serve: serve_config.yaml:9: applications[0].args.orchestrator.{fault}".replace("FOLDER/", "")
    ]


def test_a_token_that_would_go_over_plain_http_is_warned_of_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    orchestrator = f"orchestrator: {{callback_url: 'http://hive:9200/x', token_file: {tmp_path}/token}}"
    assert main(["check", str(changed(tmp_path, "workers:", f"{orchestrator}\n      workers:"))]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "rbee-serve: warning: orchestrator.token_file: the token is sent to hive over plain http, where others on the "
        "network can read it; use https in orchestrator.callback_url"
    )
