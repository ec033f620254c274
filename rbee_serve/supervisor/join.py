"""Other machines that join the supervisor's Ray.

`rbee-serve serve FILE --wait-for-nodes N` starts the workers when N machines have joined. Each joins by
`rbee-serve join HOST:PORT`, which is Ray's own `ray start` with the variables of `rbee_serve.ray_settings`. The Ray is
the supervisor's: when it ends, those machines find no head any more and their part of Ray ends too.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rbee_serve.errors import ConfigurationError
from rbee_serve.port_range import FIRST, LAST, port_range
from rbee_serve.ray_settings import set_missing
from rbee_serve.supervisor.display import Display
from rbee_serve.supervisor.monitor import StartFailed

PORT_VARIABLE = "RAY_GCS_SERVER_PORT"
"""Ray's variable for the port at which its head is joined; without it the system chooses."""
DEFAULT_PORT = "6379"
"""That of `ray start --head` too."""
CONNECT_S = 5.0
"""How long the head may take to accept a connection."""
POLL_S = 0.5
"""How often the joined machines are counted."""


def set_head_port(environ: MutableMapping[str, str]) -> None:
    """Have Ray's head listen at a port that is known before the start. Raises `ConfigurationError` if it is taken."""
    given = environ.setdefault(PORT_VARIABLE, DEFAULT_PORT)
    if not re.fullmatch("[0-9]{1,5}", given) or not FIRST <= int(given) <= LAST:
        raise ConfigurationError(f"{PORT_VARIABLE}={given} is no port; set a number between {FIRST} and {LAST}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(given)))
        except OSError:
            raise ConfigurationError(
                f"port {given}, where other machines would join, is taken by another program, such as another Ray; "
                f"stop it, or set {PORT_VARIABLE} to a free port"
            ) from None


def wait_for_nodes(
    count: int,
    nodes: Callable[[], Sequence[Mapping[str, Any]]],
    address: str,
    alive: Callable[[], bool],
    display: Display,
) -> None:
    """Return when `count` other machines have joined the Ray at `address`.

    `nodes` returns the entries of `ray.nodes()`. Raises `StartFailed` if Ray dies meanwhile.
    """
    display.line(instructions(address, os.environ))
    shown = None
    while True:
        joined = sum(node["Alive"] for node in nodes()) - 1  # this machine is one of them
        if joined >= count:
            return
        if joined != shown:
            shown = joined
            display.step(f"waiting for other machines: {joined} of {count} joined")
        time.sleep(POLL_S)
        if not alive():
            raise StartFailed("a process of Ray has died while it waited for other machines")


def instructions(address: str, environ: Mapping[str, str]) -> str:
    """How another machine joins."""
    file = _token_file(environ)
    token = f"{file} of this machine at the same path" if file else "the variable RAY_AUTH_TOKEN of this machine"
    return f"on each other machine, with {token}:\n  rbee-serve join {address}"


def join(address: str, options: Sequence[str]) -> NoReturn:
    """Become a node of the Ray at `address`, until SIGTERM or the end of that Ray: this process becomes `ray start`
    with `options`. Raises `ConfigurationError`."""
    command, environ = join_command(address, options, os.environ)
    require_head(address)
    os.execve(command[0], command, environ)  # noqa: S606 - without a shell, and our own interpreter


def require_head(address: str) -> None:
    """Raise `ConfigurationError` if nothing listens at `HOST:PORT`. Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as exc:
        reason = "no response" if isinstance(exc, TimeoutError) else (exc.strerror or "unknown host").lower()
        raise ConfigurationError(
            f"nothing can be joined at {address} ({reason}); start `rbee-serve serve FILE --wait-for-nodes N` there "
            "first, and let the port through a firewall between the machines"
        ) from None


def join_command(address: str, options: Sequence[str], environ: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The command of `join` and its environment. Raises `ConfigurationError`."""
    match = re.fullmatch(r"\S+:([0-9]{1,5})", address)
    if match is None or not 1 <= int(match[1]) <= LAST:
        raise ConfigurationError(f"{address} is no HOST:PORT; `rbee-serve serve` prints the one to join")
    variables = dict(environ)
    set_missing(variables)
    port_range(variables)
    file = _token_file(variables)
    if variables["RAY_AUTH_MODE"] == "token" and file is not None and not file.is_file():
        raise ConfigurationError(f"there is no token of Ray here; copy {file} from the machine of `rbee-serve serve`")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}", "--block", *options]
    return command, variables


def _token_file(environ: Mapping[str, str]) -> Path | None:
    """Where Ray reads its token; None if a variable has it."""
    if environ.get("RAY_AUTH_TOKEN"):
        return None
    return Path(environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
