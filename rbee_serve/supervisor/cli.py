"""The command `rbee-serve`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rbee_serve.errors import ConfigurationError
from rbee_serve.scaffold.new_worker import new_worker
from rbee_serve.supervisor.checks import CheckedConfig, check_file
from rbee_serve.supervisor.host_requirements import host_faults, host_warnings, this_host
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
        if arguments.command == "join":
            from rbee_serve.supervisor.join import join

            join(arguments.address, arguments.option)
        checked = check_file(arguments.config)
        host = this_host()
        warnings = [*checked.config.warnings(), *host_warnings(checked, host)]
        if arguments.command == "check":  # of the file; another machine may serve it
            warnings += [f"this machine cannot serve {fault}" for fault in host_faults(checked, host)]
        for warning in warnings:
            print(f"rbee-serve: warning: {warning}", file=sys.stderr)
        if arguments.command in ("check", "plan"):
            _report_memory(checked, arguments)
            print(_verdict(checked))
            return 0
        if arguments.command == "gpu-check":
            from rbee_serve.supervisor.gpu_check.check import gpu_check

            return gpu_check(checked, partial(print, flush=True))
        from rbee_serve.supervisor.serve import serve

        return serve(checked, arguments.verbose, arguments.wait_for_nodes)
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
    serve.add_argument(
        "--wait-for-nodes",
        type=_machines,
        default=0,
        metavar="N",
        help="start the workers when N other machines have joined (rbee-serve join)",
    )
    check = commands.add_parser("check", help="validate the configuration, and start nothing")
    _add_plan(commands)
    trial = commands.add_parser(
        "gpu-check", help="start each worker alone, then all together, and print a table of what was measured"
    )
    for command in (serve, check, trial):
        command.add_argument("config", type=Path, help="a Ray Serve file, such as serve_config.yaml")
    join = commands.add_parser("join", help="make this machine a node of a server on another one")
    join.add_argument("address", help="HOST:PORT, as rbee-serve serve --wait-for-nodes prints it")
    join.add_argument("option", nargs="*", help="options of `ray start` after --, such as -- --num-gpus=1")
    new = commands.add_parser(
        "new", help="write a package with a worker type of your own, its test and a configuration"
    )
    new.add_argument("name", help="the name of the package, such as word_counter")
    return parser


def _machines(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of machines; use 1 or more")
    return int(text)


def _verdict(checked: CheckedConfig) -> str:
    workers = ", ".join(f"{worker.id} ({worker.type})" for worker in checked.config.workers)
    return f"{checked.path}: the configuration is valid; it serves {workers} on {checked.base_url}"


def _add_plan(commands: Any) -> None:
    parser = commands.add_parser("plan", help="show what fits on GPUs that need not be here, and start nothing")
    parser.add_argument(
        "--gpu",
        action="append",
        required=True,
        metavar="SIZE",
        help="a GPU by the size on its box, such as 24GiB, or as nvidia-smi reports it, such as 23028MiB; "
        "once for each GPU",
    )
    parser.add_argument(
        "--facts", type=Path, metavar="FOLDER", help="files about models, for a machine that does not reach the Hub"
    )
    parser.add_argument("config", type=Path, help="a Ray Serve file, such as serve_config.gpu.yaml")


def _report_memory(checked: CheckedConfig, arguments: argparse.Namespace) -> None:
    """The memory plan, where workers have GPUs: for those of the command, or for those of this machine."""
    if not any(worker.gpus for worker in checked.config.workers):
        if arguments.command == "plan":
            print(f"{checked.path}: no worker has `gpus`, so there is nothing to plan")
        return
    from rbee_serve.memory_plan.facts_file import facts_in_folder
    from rbee_serve.memory_plan.facts_finder import FactsFinder
    from rbee_serve.memory_plan.gpu_size import parse_gpu_size
    from rbee_serve.supervisor.memory_report import gpus_here, report_memory

    if arguments.command == "check":
        if gpus := gpus_here():
            report_memory(checked, gpus, FactsFinder(), all_gpus=False)
        return
    given = facts_in_folder(arguments.facts) if arguments.facts is not None else {}
    report_memory(checked, [parse_gpu_size(text) for text in arguments.gpu], FactsFinder(given))


def _next_steps(folder: Path) -> str:
    return (
        f"{folder.name}/ is written. Next:\n"
        f"  cd {folder.name} && pip install -e .\n"
        f"  pytest\n"
        f"  rbee-serve serve serve_config.yaml\n"
        f"Your model goes into {folder.name}/worker.py."
    )
