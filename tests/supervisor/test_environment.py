"""What is set for Ray before it starts, and what of it may not be undone."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbee_serve.config import ApplicationConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.ray_settings import SETTINGS
from rbee_serve.supervisor import checks
from rbee_serve.supervisor.environment import check_environment, prepare, with_proxy_location
from tests.supervisor.configurations import ECHO, changed, written


def configured(token_file: Path | None = None) -> ApplicationConfig:
    auth = {"token_file": token_file} if token_file else {}
    return ApplicationConfig.model_validate({"workers": [{"id": "a", "type": "echo"}], "auth": auth})


def test_what_is_set_already_stays() -> None:
    environ = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
    prepare(environ)
    assert environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "0"
    assert set(environ) == {setting.name for setting in SETTINGS}


def test_our_own_settings_pass_the_check() -> None:
    environ: dict[str, str] = {}
    prepare(environ)
    check_environment(environ, configured())


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_SERVE_ENABLE_HA_PROXY", "1"), ("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_MODE", "")]
)
def test_without_a_token_nothing_may_open_a_port_to_the_network(name: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name}={value} .*set auth.token_file, or unset the variable$"):
        check_environment({name: value}, configured())
    check_environment({name: value}, configured(tmp_path / "token"))


def test_the_draining_period_of_ray_serve_can_be_set_by_its_variable() -> None:
    from ray.serve._private import constants

    names = Path(constants.__file__).read_text()
    for setting in SETTINGS:
        if setting.name.startswith("RAY_SERVE_"):
            assert f'"{setting.name}"' in names


HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}


def test_without_proxies_unless_they_are_needed_or_asked_for(tmp_path: Path) -> None:
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
