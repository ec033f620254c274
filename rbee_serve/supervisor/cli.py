"""The command `rbee-serve`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rbee_serve.errors import ConfigurationError
from rbee_serve.scaffold.new_worker import new_worker
from rbee_serve.supervisor.checks import CheckedConfig, check_file
from rbee_serve.worker_info import VERSION

CONFIGURATION_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit code: 0, 1 if it could not serve or a worker failed, 2 if the configuration is
    wrong."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "new":
            print(_next_steps(new_worker(arguments.name, Path.cwd())))
            return 0
        checked = check_file(arguments.config)
        for warning in checked.config.warnings():
            print(f"rbee-serve: warning: {warning}", file=sys.stderr)
        if arguments.command == "check":
            print(_verdict(checked))
            return 0
        if arguments.command == "gpu-check":
            from rbee_serve.supervisor.gpu_check.check import gpu_check

            return gpu_check(checked, partial(print, flush=True))
        from rbee_serve.supervisor.serve import serve

        return serve(checked, arguments.verbose)
    except ConfigurationError as exc:
        for line in str(exc).splitlines():
            print(f"rbee-serve: {line}", file=sys.stderr)
        return CONFIGURATION_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rbee-serve", description="Serve inference workers under the rbee protocol.")
    parser.add_argument("--version", action="version", version=f"rbee-serve {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="start everything and serve until Ctrl+C or SIGTERM")
    serve.add_argument("-v", "--verbose", action="store_true", help="show all output of the workers, not only warnings")
    check = commands.add_parser("check", help="validate the configuration, and start nothing")
    trial = commands.add_parser(
        "gpu-check", help="start each worker alone, then all together, and print a table of what was measured"
    )
    for command in (serve, check, trial):
        command.add_argument("config", type=Path, help="a Ray Serve file, such as serve_config.yaml")
    new = commands.add_parser(
        "new", help="write a package with a worker type of your own, its test and a configuration"
    )
    new.add_argument("name", help="the name of the package, such as word_counter")
    return parser


def _verdict(checked: CheckedConfig) -> str:
    workers = ", ".join(f"{worker.id} ({worker.type})" for worker in checked.config.workers)
    return f"{checked.path}: the configuration is valid; it serves {workers} on {checked.base_url}"


def _next_steps(folder: Path) -> str:
    return (
        f"{folder.name}/ is written. Next:\n"
        f"  cd {folder.name} && pip install -e .\n"
        f"  pytest\n"
        f"  rbee-serve serve serve_config.yaml\n"
        f"Your model goes into {folder.name}/worker.py."
    )
