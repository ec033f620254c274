"""Other machines that join the supervisor's Ray, without Ray."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rbee_serve.errors import ConfigurationError
from rbee_serve.ray_settings import SETTINGS
from rbee_serve.supervisor import join as module
from rbee_serve.supervisor.cli import main
from rbee_serve.supervisor.join import instructions, join_command, require_head, set_head_port, wait_for_nodes
from rbee_serve.supervisor.monitor import StartFailed
from tests.conftest import free_port

ADDRESS = "10.0.0.5:6379"
HEAD = {"Alive": True}


class Lines:
    """A display that keeps what it shows."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def step(self, text: str) -> None:
        self.shown.append(text)

    def line(self, text: str) -> None:
        self.shown.append(text)

    def workers(self, *arguments: Any) -> None:
        raise AssertionError


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "auth_token"
    file.write_text("a token of Ray")
    return file


def test_the_head_listens_at_rays_own_port_unless_another_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.DEFAULT_PORT == "6379"
    default, other = str(free_port()), str(free_port())
    monkeypatch.setattr(module, "DEFAULT_PORT", default)  # another Ray of this machine may have the real one
    for environ, port in (({}, default), ({"RAY_GCS_SERVER_PORT": other}, other)):
        set_head_port(environ)
        assert environ == {"RAY_GCS_SERVER_PORT": port}


def test_a_port_of_the_head_that_is_taken_is_refused_before_ray_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError) as refused:
            set_head_port({"RAY_GCS_SERVER_PORT": str(port)})
    assert str(refused.value) == (
        f"port {port}, where other machines would join, is taken by another program, such as another Ray; stop it, or "
        "set RAY_GCS_SERVER_PORT to a free port"
    )


@pytest.mark.parametrize("value", ["", "0", "80", "65536", "six", "-1", "1e4"])
def test_a_port_of_the_head_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^RAY_GCS_SERVER_PORT={value} is no port; set a number between"):
        set_head_port({"RAY_GCS_SERVER_PORT": value})


def test_the_wait_ends_when_enough_other_machines_have_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0)
    gone = {"Alive": False}
    steps: Iterator[list[dict[str, bool]]] = iter(
        [[HEAD], [HEAD], [HEAD, HEAD], [HEAD, gone], [HEAD, gone, HEAD], [HEAD, gone, HEAD, HEAD]]
    )
    lines = Lines()
    wait_for_nodes(2, lambda: next(steps), ADDRESS, lambda: True, lines)
    assert next(steps, None) is None
    assert f"rbee-serve join {ADDRESS}" in lines.shown[0]
    assert lines.shown[1:] == [f"waiting for other machines: {joined} of 2 joined" for joined in (0, 1, 0, 1)]


def test_the_wait_ends_when_ray_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0)
    with pytest.raises(StartFailed, match=r"^a process of Ray has died while"):
        wait_for_nodes(1, lambda: [HEAD], ADDRESS, lambda: False, Lines())


def test_a_machine_joins_with_the_variables_that_the_supervisor_sets(token_file: Path) -> None:
    environ = {"HOME": "/root", "RAY_AUTH_TOKEN_PATH": str(token_file), "RAY_worker_niceness": "5"}
    command, variables = join_command(ADDRESS, ["--num-gpus=1"], environ)
    assert command[0] == sys.executable
    assert command[-4:] == ["start", f"--address={ADDRESS}", "--block", "--num-gpus=1"]
    assert {setting.name for setting in SETTINGS} <= variables.keys()
    assert variables["RAY_worker_niceness"] == "5"
    assert environ.keys() <= variables.keys()


def test_without_rays_token_a_machine_cannot_join(tmp_path: Path, token_file: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(ConfigurationError) as refused:
        join_command(ADDRESS, [], {"RAY_AUTH_TOKEN_PATH": str(missing)})
    assert str(refused.value) == (
        f"there is no token of Ray here; copy {missing} from the machine of `rbee-serve serve`"
    )
    join_command(ADDRESS, [], {"RAY_AUTH_TOKEN_PATH": str(token_file)})
    join_command(ADDRESS, [], {"RAY_AUTH_TOKEN": "a token of Ray"})
    join_command(ADDRESS, [], {"RAY_AUTH_TOKEN_PATH": str(missing), "RAY_AUTH_MODE": "disabled"})


@pytest.mark.parametrize(
    "address",
    ["10.0.0.5", "10.0.0.5:", ":6379", "10.0.0.5:port", "10.0.0.5:6379 --head", "10.0.0.5:0", "10.0.0.5:65536"],
)
def test_an_address_without_a_host_or_a_port_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"no HOST:PORT; `rbee-serve serve` prints the one to join$"):
        join_command(address, [], {"RAY_AUTH_TOKEN": "a token of Ray"})


def test_a_head_that_is_not_there_is_an_error_with_what_to_do_and_no_wait() -> None:
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with pytest.raises(
            ConfigurationError, match=rf"joined at {address} \(connection refused\); start .* there first"
        ):
            require_head(address)
        head.listen()
        require_head(address)
    with pytest.raises(ConfigurationError, match=r"joined at no\.such\.host\.invalid:6379 \(.+\); start "):
        require_head("no.such.host.invalid:6379")


def test_a_wrong_range_of_ports_is_refused_where_a_machine_joins() -> None:
    with pytest.raises(ConfigurationError, match=r"^RBEE_SERVE_PORTS=1-2 is no range"):
        join_command(ADDRESS, [], {"RAY_AUTH_TOKEN": "a token of Ray", "RBEE_SERVE_PORTS": "1-2"})


def test_the_instructions_name_where_the_token_is_and_never_the_token(token_file: Path) -> None:
    assert "/.ray/auth_token of this machine at the same path:\n" in instructions(ADDRESS, {})
    assert str(token_file) in instructions(ADDRESS, {"RAY_AUTH_TOKEN_PATH": str(token_file)})
    assert instructions(ADDRESS, {"RAY_AUTH_TOKEN": "secret"}) == (
        f"on each other machine, with the variable RAY_AUTH_TOKEN of this machine:\n  rbee-serve join {ADDRESS}"
    )


def test_options_of_ray_start_follow_two_dashes(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[tuple[str, list[str]]] = []

    def join(address: str, options: list[str]) -> None:
        joined.append((address, options))
        sys.exit(0)

    monkeypatch.setattr(module, "join", join)
    for options in ([], ["--num-gpus=1", "--node-ip-address", "10.0.0.6"]):
        with pytest.raises(SystemExit):
            main(["join", ADDRESS, *(["--", *options] if options else [])])
        assert joined.pop() == (ADDRESS, options)


@pytest.mark.parametrize("count", ["0", "-1", "one", "1.5", ""])
def test_a_number_of_machines_that_is_none_is_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "serve_config.yaml", f"--wait-for-nodes={count}"])
    assert f"{count!r} is no number of machines; use 1 or more" in capsys.readouterr().err
