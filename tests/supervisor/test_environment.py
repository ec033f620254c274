"""The settings of the environment that are checked or derived before Ray starts."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest

from rbee_serve.config import ApplicationConfig, parse_application
from rbee_serve.errors import ConfigurationError
from rbee_serve.ray_settings import SETTINGS, set_missing
from rbee_serve.supervisor import checks, environment
from rbee_serve.supervisor.environment import (
    add_programs_to_path,
    check_environment,
    mig_instances,
    with_own_token,
    with_proxy_location,
)
from tests.supervisor.configurations import ECHO, changed, written


def configured(token_file: Path | None = None, **worker: float) -> ApplicationConfig:
    auth = {"token_file": token_file} if token_file else {}
    return ApplicationConfig.model_validate({"workers": [{"id": "a", "type": "echo", **worker}], "auth": auth})


def test_the_settings_of_rbee_serve_pass_the_check() -> None:
    environ: dict[str, str] = {}
    set_missing(environ)
    check_environment(environ, configured())


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_SERVE_ENABLE_HA_PROXY", "1"), ("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_MODE", "")]
)
def test_without_a_token_nothing_may_open_a_port_to_the_network(name: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name}={value} .*set auth.token_file, or unset the variable$"):
        check_environment({name: value}, configured())
    check_environment({name: value}, configured(tmp_path / "token"))


@pytest.mark.parametrize("value", ["1", "true", "True"])
def test_workers_with_gpus_need_ray_to_show_each_process_its_own(value: str, tmp_path: Path) -> None:
    environ = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": value}
    for token_file in (None, tmp_path / "token"):
        with pytest.raises(ConfigurationError, match=f"CUDA_VISIBLE_DEVICES={value} puts .*: unset the variable$"):
            check_environment(environ, configured(token_file, gpus=0.5))
    check_environment(environ, configured())
    check_environment({"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "0"}, configured(gpus=1))


@pytest.mark.parametrize(
    ("visible", "instances"),
    [("MIG-a", 1), ("MIG-a,MIG-b,MIG-c", 3), ("0,1", None), ("GPU-a,GPU-b", None), ("", None), (None, None)],
)
def test_ray_is_given_the_number_of_mig_instances(visible: str | None, instances: int | None) -> None:
    assert mig_instances({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == instances


def test_ray_knows_the_variable_that_hides_gpus() -> None:
    from ray._private.accelerators import nvidia_gpu

    assert nvidia_gpu.NOSET_CUDA_VISIBLE_DEVICES_ENV_VAR == environment._NOSET


def test_a_wrong_range_of_ports_is_refused_before_ray_starts(tmp_path: Path) -> None:
    for config in (configured(), configured(tmp_path / "token")):
        with pytest.raises(ConfigurationError, match=r"^RBEE_SERVE_PORTS=20000 is no range of ports"):
            check_environment({"RBEE_SERVE_PORTS": "20000"}, config)
        check_environment({"RBEE_SERVE_PORTS": "20000-20100"}, config)


def test_ray_serve_knows_the_variables_of_the_table() -> None:
    from ray.serve._private import constants

    names = Path(constants.__file__).read_text()
    for setting in SETTINGS:
        if setting.name.startswith("RAY_SERVE_"):
            assert f'"{setting.name}"' in names


HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}


def test_there_are_no_proxies_unless_they_are_needed_or_configured(tmp_path: Path) -> None:
    def location(path: Path, environ: dict[str, str]) -> str:
        return str(with_proxy_location(checks.check_file(path), environ).document["proxy_location"])

    assert location(written(tmp_path, ECHO), {}) == "Disabled"
    assert location(written(tmp_path, ECHO), HAPROXY) == "EveryNode"
    assert location(changed(tmp_path, "route_prefix: /", "route_prefix: /models"), {}) == "EveryNode"
    assert (
        location(written(tmp_path, ECHO + "  - {name: other, import_path: json:loads, route_prefix: /x}\n"), {})
        == "EveryNode"
    )
    assert location(written(tmp_path, ECHO + "proxy_location: HeadOnly\n"), {}) == "HeadOnly"


def test_the_supervisor_has_a_token_where_requests_need_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a-token")
    keys = f"{{keys: [{{name: a, token_file: {tmp_path}/a, workers: [echo-0]}}]}}"
    other = "  - {name: other, import_path: json:loads, route_prefix: /x, args: {auth: {}}}\n"
    text = ECHO.replace("workers:", f"auth: {keys}\n      workers:") + other
    checked = checks.check_file(written(tmp_path, text))
    first, second = with_own_token(checked), with_own_token(checked)
    assert first.token
    assert first.token != second.token
    served, untouched = first.document["applications"]
    auth = parse_application(served["args"]).auth
    assert auth.supervisor_sha256 == hashlib.sha256(first.token).hexdigest()
    assert [key.name for key in auth.keys] == ["a"]
    assert untouched["args"] == {"auth": {}}
    assert first.token.decode() not in str(first.document)


def test_without_keys_the_supervisor_needs_no_token(tmp_path: Path) -> None:
    checked = checks.check_file(written(tmp_path, ECHO))
    assert with_own_token(checked) is checked


def test_the_programs_of_the_environment_are_found_as_if_it_were_activated() -> None:
    programs = str(Path(sys.executable).parent)
    environ = {"PATH": "/usr/bin:/bin"}
    add_programs_to_path(environ)
    assert environ["PATH"] == f"{programs}:/usr/bin:/bin"
    assert shutil.which("ninja", path=environ["PATH"]) == f"{programs}/ninja"  # FlashInfer compiles with it
    add_programs_to_path(environ)
    assert environ["PATH"] == f"{programs}:/usr/bin:/bin"
    bare: dict[str, str] = {}
    add_programs_to_path(bare)
    assert bare["PATH"] == f"{programs}:{os.defpath}"
