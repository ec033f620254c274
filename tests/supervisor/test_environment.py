"""The settings of the environment that are checked or derived before Ray starts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from rbee_serve.config import ApplicationConfig, parse_application
from rbee_serve.errors import ConfigurationError
from rbee_serve.ray_settings import SETTINGS, set_missing
from rbee_serve.supervisor import checks
from rbee_serve.supervisor.environment import check_environment, with_own_token, with_proxy_location
from tests.supervisor.configurations import ECHO, changed, written


def configured(token_file: Path | None = None) -> ApplicationConfig:
    auth = {"token_file": token_file} if token_file else {}
    return ApplicationConfig.model_validate({"workers": [{"id": "a", "type": "echo"}], "auth": auth})


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
