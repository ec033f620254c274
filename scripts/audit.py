"""Looks up every pin of `requirements/` in a database of known vulnerabilities.

    python -m scripts.audit

Exit status: 0 no pin has a known vulnerability; 1 some have, and they are listed; 3 nothing was checked, because no
database could be reached. pip-audit does the work, in an environment of its own that uv makes.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.install import REQUIREMENTS, VENV, Command, read_pins, settings_for_uv
from scripts.sbom import ACCELERATORS, REBUILDS

PIP_AUDIT = "pip-audit==2.10.1"
DATABASES = ("pypi", "osv")
"""pip-audit's names of the databases, in the order in which they are tried."""
CLEAN, VULNERABLE, NOT_CHECKED = 0, 1, 3
TIMEOUT_S = 600


@dataclass(frozen=True)
class Report:
    """What a database says: known vulnerabilities, a line each, and the pins that it does not know."""

    vulnerable: tuple[str, ...]
    unknown: tuple[str, ...]
    known: int


def main() -> int:
    """Audit; return the exit status."""
    pins = audited({name: read_pins(REQUIREMENTS / name) for name in ACCELERATORS.values()})
    for database in DATABASES:
        report = look_up(pins, database)
        if report is not None and report.known:
            return conclude(report)
    print(
        f"audit: NOT CHECKED: no database of vulnerabilities ({', '.join(DATABASES)}) could be reached from here; "
        "run it where one can",
        file=sys.stderr,
    )
    return NOT_CHECKED


def audited(files: dict[str, dict[str, str]]) -> list[str]:
    """Every pin once, and for a rebuild the package that advisories name."""
    pins = {(name, version) for pins in files.values() for name, version in pins.items()}
    originals = {(REBUILDS[name], version) for name, version in pins if name in REBUILDS}
    return [f"{name}=={version}" for name, version in sorted(pins | originals)]


def look_up(pins: list[str], database: str) -> Report | None:
    """The database's report; None where it could not be reached."""
    with tempfile.TemporaryDirectory() as folder:
        requirements, found = Path(folder, "requirements.txt"), Path(folder, "found.json")
        requirements.write_text("\n".join(pins) + "\n", encoding="utf-8")
        tool: Command = [VENV / "bin" / "uv", "tool", "run", "--from", PIP_AUDIT, "pip-audit"]
        options: Command = ["--requirement", requirements, "--no-deps", "--disable-pip", "--progress-spinner", "off"]
        output: Command = ["--vulnerability-service", database, "--format", "json", "--output", found]
        environment = {**os.environ, **settings_for_uv()}
        try:
            subprocess.run([*tool, *options, *output], env=environment, capture_output=True, timeout=TIMEOUT_S)
            return read_report(json.loads(found.read_text(encoding="utf-8")))
        except (OSError, ValueError, subprocess.TimeoutExpired):  # it writes no file where it fails
            return None


def read_report(found: dict[str, Any]) -> Report:
    """pip-audit's JSON as a report."""
    packages = found["dependencies"]
    return Report(
        vulnerable=tuple(
            f"{package['name']} {package['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or '-'}"
            for package in packages
            for flaw in package.get("vulns", ())
        ),
        unknown=tuple(package["name"] for package in packages if "skip_reason" in package),
        known=sum("skip_reason" not in package for package in packages),
    )


def conclude(report: Report) -> int:
    """Print the report; return the exit status."""
    if report.unknown:
        print(f"audit: the database does not know {', '.join(report.unknown)}")
    for line in report.vulnerable:
        print(f"audit: {line}")
    print(f"audit: {report.known} pins were checked, {len(report.vulnerable)} known vulnerabilities")
    return VULNERABLE if report.vulnerable else CLEAN


if __name__ == "__main__":
    sys.exit(main())
