"""The messages about faults in `serve_config.yaml`, before anything starts."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from rbee_serve.config.autoscaling import AutoscalingConfig, AutoscalingPolicy
from rbee_serve.errors import ConfigurationError
from rbee_serve.supervisor import checks, serve_schema
from rbee_serve.supervisor.cli import main
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


FAULTS = {
    "a misplaced option of autoscaling": (
        "cpus: 0",
        "autoscaling: {max_ongoing_requests: 10}",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].autoscaling.max_ongoing_requests: "
            "is not a key of autoscaling; move it out, beside autoscaling"
        ),
    ),
    "an option of autoscaling beside it": (
        "cpus: 0",
        "min_replicas: 1",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].min_replicas: "
            "unknown key; it belongs under autoscaling"
        ),
    ),
    "a misspelt option of autoscaling": (
        "cpus: 0",
        "autoscaling:\n            max_replica: 2",
        (
            "rbee-serve: serve_config.yaml:13: applications[0].args.workers[0].autoscaling.max_replica: "
            "unknown key; did you mean max_replicas?"
        ),
    ),
    "a minimum above the maximum": (
        "cpus: 0",
        "autoscaling: {min_replicas: 3, max_replicas: 2}",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].autoscaling: "
            "max_replicas: 2 is below min_replicas: 3"
        ),
    ),
    "a minimum at which nothing would start again": (
        "cpus: 0",
        "autoscaling: {min_replicas: 0, max_replicas: 2}",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].autoscaling: min_replicas: "
            "0 would stop the last replica, and no request starts another; set at least 1"
        ),
    ),
    "a number of replicas that is a word": (
        "cpus: 0",
        "autoscaling: {min_replicas: one}",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].autoscaling.min_replicas: "
            "must be a whole number such as 4, not 'one'"
        ),
    ),
    "a misspelt key of an override": (
        "    args:",
        "    deployments: [{name: echo-0, num_replica: 2}]\n    args:",
        (
            "rbee-serve: serve_config.yaml:8: applications[0].deployments[0].num_replica: "
            "unknown key; did you mean num_replicas?"
        ),
    ),
    "a misspelt option of an override's actor": (
        "    args:",
        "    deployments:\n      - name: echo-0\n        ray_actor_options: {num_cpu: 2}\n    args:",
        (
            "rbee-serve: serve_config.yaml:10: applications[0].deployments[0].ray_actor_options.num_cpu: "
            "unknown key; did you mean num_cpus?"
        ),
    ),
    "a misplaced option of an override": (
        "    args:",
        "    deployments:\n      - name: echo-0\n        num_cpus: 2\n    args:",
        (
            "rbee-serve: serve_config.yaml:10: applications[0].deployments[0].num_cpus: "
            "unknown key; it belongs under ray_actor_options"
        ),
    ),
    "a number of replicas that is neither a number nor auto": (
        "    args:",
        "    deployments: [{name: echo-0, num_replicas: some}]\n    args:",
        (
            "rbee-serve: serve_config.yaml:8: applications[0].deployments[0].num_replicas: "
            "must be a whole number such as 4 or one of auto, not 'some'"
        ),
    ),
    "a negative duration": (
        "  port: 8000",
        "  port: 8000\n  keep_alive_timeout_s: -1",
        "rbee-serve: serve_config.yaml:4: http_options.keep_alive_timeout_s: must be at least 0, not -1",
    ),
    "a capacity of more than all": (
        "http_options:",
        "target_capacity: 101\nhttp_options:",
        "rbee-serve: serve_config.yaml:1: target_capacity: must be at most 100, not 101",
    ),
    "a level of logging that is none": (
        "http_options:",
        "logging_config: {log_level: debug}\nhttp_options:",
        (
            "rbee-serve: serve_config.yaml:1: logging_config.log_level: "
            "must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL, not 'debug'"
        ),
    ),
    "a runtime environment's variable that is a number": (
        "    args:",
        "    runtime_env: {env_vars: {OMP_NUM_THREADS: 4}}\n    args:",
        (
            "rbee-serve: serve_config.yaml:8: applications[0].runtime_env: needs texts in env_vars; "
            "put each value in quotes, such as env_vars: {OMP_NUM_THREADS: '4'}"
        ),
    ),
    "a misspelt key of a runtime environment": (
        "    args:",
        "    runtime_env: {env_var: {A: b}}\n    args:",
        (
            "rbee-serve: serve_config.yaml:8: applications[0].runtime_env: "
            "has the unknown key env_var; did you mean env_vars?"
        ),
    ),
    "a number as an id": (
        "id: echo-0",
        "id: 010",
        (
            "rbee-serve: serve_config.yaml:10: applications[0].args.workers[0].id: "
            "must be letters, digits, - and _ only, such as llm-0, not the number 8; put it in quotes"
        ),
    ),
    "an id with a blank": (
        "id: echo-0",
        "id: echo 0",
        (
            "rbee-serve: serve_config.yaml:10: applications[0].args.workers[0].id: "
            "must be letters, digits, - and _ only, such as llm-0, not 'echo 0'"
        ),
    ),
    "a word that YAML reads as a boolean": (
        "cpus: 0",
        "model_name: no",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].model_name: must be text, not false; "
            "put it in quotes (YAML reads yes, no, on and off as true and false)"
        ),
    ),
    "a date in place of text": (
        "cpus: 0",
        "model_name: 2026-01-31",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].model_name: must be text, "
            "not the date 2026-01-31; put it in quotes"
        ),
    ),
    "a boolean in place of a number": (
        "cpus: 0",
        "gpus: yes",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].gpus: "
            "must be a number such as 0.5, not true"
        ),
    ),
    "a key without a value": (
        "cpus: 0",
        "cpus:",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].cpus: has no value; "
            "give it one, or remove the key"
        ),
    ),
    "a mapping in place of a list": (
        "      workers:\n        - id: echo-0\n          type: echo\n          cpus: 0",
        "      workers:\n        echo-0: {type: echo}",
        ("rbee-serve: serve_config.yaml:9: applications[0].args.workers: must be a list such as [a, b], not a mapping"),
    ),
    "a URL without a scheme": (
        "      workers:",
        "      public_url: box:8000\n      workers:",
        (
            "rbee-serve: serve_config.yaml:9: applications[0].args.public_url: "
            "must be a URL such as http://box:8000, not 'box:8000'"
        ),
    ),
    "a helper worker's id that is none": (
        "cpus: 0",
        "uses: {audio: a b}",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].uses.audio: "
            "must be letters, digits, - and _ only, such as llm-0, not 'a b'"
        ),
    ),
    "a choice that is none": (
        "cpus: 0",
        "backend: gpu",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].backend: "
            "must be one of auto, cuda, cpu, metal, not 'gpu'"
        ),
    ),
    "a limit that is text": (
        "cpus: 0",
        "limits: {max_tokens: many}",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].limits.max_tokens: "
            "must be a whole number such as 4 or a number such as 0.5, not 'many'"
        ),
    ),
    "a key that is a number": (
        "cpus: 0",
        "cpus: 0\n          3: 4",
        (
            "rbee-serve: serve_config.yaml:13: applications[0].args.workers[0].3: "
            "is a key that is no text; put it in quotes"
        ),
    ),
    "a tab": (
        "          cpus: 0",
        "\tcpus: 0",
        "rbee-serve: serve_config.yaml:12: is not valid YAML: has a tab in its indentation; use blanks",
    ),
    "an alias without its anchor": (
        "cpus: 0",
        "cpus: *none",
        "rbee-serve: serve_config.yaml:12: is not valid YAML: found undefined alias 'none'",
    ),
    "a wrong key of a worker": (
        "cpus: 0",
        "cpus: 0\n          modell_ref: x",
        (
            "rbee-serve: serve_config.yaml:13: applications[0].args.workers[0].modell_ref: "
            "unknown key; did you mean model_ref?"
        ),
    ),
    "a wrong key of the application's arguments": (
        "      workers:",
        "      autth: {}\n      workers:",
        "rbee-serve: serve_config.yaml:9: applications[0].args.autth: unknown key; did you mean auth?",
    ),
    "a wrong key of an application": (
        "route_prefix",
        "rout_prefix",
        "rbee-serve: serve_config.yaml:6: applications[0].rout_prefix: unknown key; did you mean route_prefix?",
    ),
    "a wrong key of the HTTP options": (
        "  host:",
        "  hosst:",
        "rbee-serve: serve_config.yaml:2: http_options.hosst: unknown key; did you mean host?",
    ),
    "a wrong key at the top": (
        "http_options",
        "http_option",
        "rbee-serve: serve_config.yaml:1: http_option: unknown key; did you mean http_options?",
    ),
    "a wrong key of a nested model": (
        "      workers:",
        "      orchestrator: {callback_url: 'http://hive', timeout: 3}\n      workers:",
        (
            "rbee-serve: serve_config.yaml:9: applications[0].args.orchestrator.timeout: "
            "unknown key; did you mean timeout_s?"
        ),
    ),
    "a wrong key with no key near it": (
        "cpus: 0",
        "zzz: 0",
        "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].zzz: unknown key",
    ),
    "the former key for running requests": (
        "cpus: 0",
        "capacity: 8",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].capacity: "
            "is called max_ongoing_requests now; rename the key"
        ),
    ),
    "the former key for waiting requests": (
        "cpus: 0",
        "queue: 8",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].queue: "
            "is called max_queued_requests now; rename the key"
        ),
    ),
    "an override of a worker's limit on requests": (
        "    args:",
        "    deployments: [{name: echo-0, max_ongoing_requests: 2}]\n    args:",
        (
            "rbee-serve: serve_config.yaml:8: applications[0].deployments[0].max_ongoing_requests: is derived by "
            "rbee-serve and cannot be overridden; set max_ongoing_requests of the worker echo-0 under args.workers"
        ),
    ),
    "an override of the ingress's limit on requests": (
        "    args:",
        "    deployments: [{name: ingress, max_queued_requests: 2}]\n    args:",
        (
            "rbee-serve: serve_config.yaml:8: applications[0].deployments[0].max_queued_requests: is derived by "
            "rbee-serve and cannot be overridden; remove the key"
        ),
    ),
    "a value of the wrong type": (
        "cpus: 0",
        "cpus: many",
        (
            "rbee-serve: serve_config.yaml:12: applications[0].args.workers[0].cpus: must be a number such as 0.5, "
            "not 'many'"
        ),
    ),
    "a missing key": (
        "- id: echo-0\n          type: echo",
        "- id: echo-0",
        "rbee-serve: serve_config.yaml:10: applications[0].args.workers[0].type: is missing",
    ),
    "an unknown worker type": (
        "type: echo",
        "type: ecko",
        (
            "rbee-serve: serve_config.yaml:11: applications[0].args.workers[0].type: "
            "worker type 'ecko' is unknown; did you mean echo?"
        ),
    ),
    "a key for a worker that does not exist": (
        "      workers:",
        "      auth: {keys: [{name: a, token_file: /dev/null, workers: [llm-0]}]}\n      workers:",
        (
            "rbee-serve: serve_config.yaml:9: applications[0].args.auth.keys[0].token_file: /dev/null is not a "
            "regular file; name one\n"
            "rbee-serve: serve_config.yaml:9: applications[0].args.auth.keys[0].workers[0]: no worker has the id llm-0"
        ),
    ),
    "a page that is no origin": (
        "      workers:",
        "      cors: {allow_origins: ['http://localhost:3000/']}\n      workers:",
        (
            "rbee-serve: serve_config.yaml:9: applications[0].args.cors.allow_origins[0]: must be an origin such as "
            "https://app.example:8443, without a path or a slash at its end; * allows every origin"
        ),
    ),
    "a password that is a number, which is not repeated": (
        "http_options:",
        "http_options:\n  ssl_keyfile_password: 123456",
        "rbee-serve: serve_config.yaml:2: http_options.ssl_keyfile_password: must be text",
    ),
    "a host beyond this machine without a token": (
        "127.0.0.1",
        "0.0.0.0",
        (
            "rbee-serve: serve_config.yaml: http_options.host is 0.0.0.0, but without a token the server answers on "
            "127.0.0.1 only; set auth.token_file or auth.keys, or that host"
        ),
    ),
    "a port that is none": (
        "8000",
        "80000",
        "rbee-serve: serve_config.yaml:3: http_options.port: must be at most 65535, not 80000",
    ),
    "a builder that is not there": (
        "deployments.app",
        "deploymentz.app",
        (
            "rbee-serve: serve_config.yaml:7: applications[0].import_path: "
            "there is no module deploymentz here or in the environment"
        ),
    ),
    "a builder that has another name": (
        ":build_app",
        ":build",
        "rbee-serve: serve_config.yaml:7: applications[0].import_path: deployments.app has no build",
    ),
    "a builder of somebody else": (
        "deployments.app:build_app",
        "json:dumps",
        (
            "rbee-serve: serve_config.yaml:4: applications: none has a builder of rbee-serve; "
            "import_path is deployments.app:build_app"
        ),
    ),
    "an override of a deployment that is not there": (
        "    args:",
        "    deployments: [{name: echo-1, num_replicas: 2}]\n    args:",
        (
            "rbee-serve: serve_config.yaml:8: applications[0].deployments[0].name: "
            "'echo-1' is none of the deployments echo-0, hub, ingress"
        ),
    ),
    "a key that is given twice": (
        "cpus: 0",
        "cpus: 0\n          cpus: 1",
        "rbee-serve: serve_config.yaml:13: applications[0].args.workers[0].cpus: the key is given twice",
    ),
    "text that is not YAML": (
        "type: echo",
        "type: [echo",
        "rbee-serve: serve_config.yaml:12: is not valid YAML: expected ',' or ']', but got ':'",
    ),
}


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
    for path in root.glob("serve_config*.yaml"):
        assert checks.check_file(path).config.workers, path


def test_the_workers_for_each_size_of_gpu_are_accepted_and_fit_on_one(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "serve_config.gpu.yaml").read_text()
    before, _, below = text.partition("      workers:\n")
    _, _, comment = below.partition("\n      # workers:\n")
    above_and_larger = [f"{before}      workers:", *(line.replace("# ", "", 1) for line in comment.splitlines())]
    small, large = (
        checks.check_file(written(tmp_path, each)).config.workers for each in (text, "\n".join(above_and_larger))
    )
    assert [worker.id for worker in small] == [worker.id for worker in large]
    assert {worker.model_ref for worker in small} != {worker.model_ref for worker in large}
    for workers in (small, large):
        assert all(worker.gpus for worker in workers)
        assert round(sum(worker.gpus for worker in workers), 6) <= 1


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


def test_the_known_keys_are_those_of_the_installed_ray_serve() -> None:
    from ray.runtime_env import RuntimeEnv
    from ray.serve import config, schema

    pairs: list[tuple[type[BaseModel], type[BaseModel]]] = [
        (serve_schema.ServeFile, schema.ServeDeploySchema),
        (serve_schema.ServeApplication, schema.ServeApplicationSchema),
        (serve_schema.HttpOptions, schema.HTTPOptionsSchema),
        (serve_schema.GrpcOptions, schema.gRPCOptionsSchema),
        (serve_schema.LoggingOptions, schema.LoggingConfig),
        (serve_schema.TracingOptions, schema.TracingConfig),
        (serve_schema.ControllerOptions, config.ControllerOptions),
        (serve_schema.DeploymentOverride, schema.DeploymentSchema),
        (serve_schema.ActorOptions, schema.RayActorOptionsSchema),
        (serve_schema.BackpressureOptions, config.BackpressureConfig),
        (serve_schema.RouterOptions, config.RequestRouterConfig),
        (serve_schema.GangOptions, config.GangSchedulingConfig),
        (serve_schema.DeploymentActor, config.DeploymentActorConfig),
        (AutoscalingConfig, config.AutoscalingConfig),
        (AutoscalingPolicy, config.AutoscalingPolicy),
    ]
    for ours, rays in pairs:
        assert set(ours.model_fields) == set(rays.model_fields), rays
        for name, field in ours.model_fields.items():
            assert field.is_required() == rays.model_fields[name].is_required(), (rays, name)
    assert RuntimeEnv.known_fields - {
        "_ray_release",
        "_ray_commit",
        "_inject_current_ray",
        "_nsight",
        "_rocprof_sys",
    } <= (serve_schema.RUNTIME_KEYS)


def test_values_that_ray_serve_refuses_are_refused_by_the_check(tmp_path: Path) -> None:
    from ray.serve.schema import DeploymentSchema

    for level in ["WARN", "FATAL", "NOTSET", 0, 30]:
        DeploymentSchema(name="echo-0", logging_config={"log_level": level})
        valid = {"name": "echo-0", "logging_config": {"log_level": level}}
        checks.check_file(
            written(tmp_path, ECHO.replace("    args:", f"    deployments: [{json.dumps(valid)}]\n    args:"))
        )
    wrong: list[dict[str, Any]] = [
        *({name: -1} for name, field in DeploymentSchema.model_fields.items() if field.annotation in (int, float)),
        *({name: "x"} for name, field in DeploymentSchema.model_fields.items() if field.annotation in (int, float)),
        {"num_replicas": 0},
        {"num_replicas": "some"},
        {"ray_actor_options": {"num_cpus": -1}},
        {"ray_actor_options": {"label_selector": {"a": 1}}},
        {"logging_config": {"log_level": "debug"}},
        {"rolling_update_percentage": 2},
        {"user_config": "text"},
        {"num_replicas": 2, "autoscaling_config": {"max_replicas": 2}},
    ]
    for override in wrong:
        if override not in ({"max_queued_requests": -1}, {"max_replicas_per_node": -1}):
            with pytest.raises(ValidationError):
                DeploymentSchema(name="echo-0", **override)
            text = ECHO.replace(
                "    args:", f"    deployments: [{json.dumps({'name': 'echo-0', **override})}]\n    args:"
            )
            with pytest.raises(ConfigurationError, match=r"serve_config.yaml:8: applications\[0\]\.deployments\[0\]"):
                checks.check_file(written(tmp_path, text))


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
