"""The benchmarks by goal. A benchmark that fails is reported, and the others continue.

    python -m benchmarks                 list them
    python -m benchmarks P3 P5           run these, one after another, and print the results
    python -m benchmarks all --quick     run all that are quick
    python -m benchmarks report          all goals, or the named ones, from the rows of raw/

Options name the baselines that need an environment of their own.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time

from benchmarks.method import table
from benchmarks.report import report
from benchmarks.runs import BASELINES, GOALS, RUNS, Run
from benchmarks.servers import ROOT


def main() -> int:
    """Run the command; the exit status is 1 if a benchmark failed."""
    options = _options()
    if "list" in options.what:
        print(_listed())
        return 0
    named = [run for run in RUNS if run.goal in options.what]
    if "report" in options.what:
        print(report(named or RUNS, options.quick))
        return 0
    chosen = RUNS if "all" in options.what else named
    runs = [run for run in chosen if not options.quick or run.quick is not None]
    for run in chosen:
        if run not in runs:
            print(f"{run.goal}, {run.about}: no quick run", file=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the running benchmark has to end its servers
    baselines = {name: folder for name in BASELINES if (folder := getattr(options, name.replace("-", "_")))}
    failed = [run for run in runs if not _done(run, options.quick, baselines)]
    print(report([run for run in runs if run not in failed], options.quick), flush=True)
    for run in failed:
        print(f"{run.goal}, {run.about}: FAILED")
    return 1 if failed else 0


def _done(run: Run, quick: bool, baselines: dict[str, str]) -> bool:
    """Whether the run succeeded."""
    command = run.command(quick, baselines)
    print(f"{run.goal}, {run.about}: python {' '.join(command[1:])}", file=sys.stderr, flush=True)
    began = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.wait()  # it received the signal too, and ends its servers first
            raise
    print(f"{run.goal} took {time.monotonic() - began:.0f} s, exit status {status}\n", file=sys.stderr, flush=True)
    return status == 0


def _listed() -> str:
    lines = [[run.goal, run.about, run.module, run.full, "no" if run.quick is None else run.quick] for run in RUNS]
    return table(["goal", "what", "benchmarks.", "options", "options for --quick"], lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", default="list", choices=[*GOALS, "all", "report", "list"], metavar="WHAT")
    parser.add_argument("--quick", action="store_true", help="few blocks, and only benchmarks of a minute or two")
    for name, about in BASELINES.items():
        parser.add_argument(f"--{name}", help=about)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
