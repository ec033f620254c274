"""The manifest of the Kubernetes page: its Serve file is one that rbee-serve accepts, and its variables are known."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rbee_serve.port_range import port_range
from rbee_serve.ray_settings import SETTINGS
from rbee_serve.supervisor.checks import check_file

PAGE = Path(__file__).resolve().parent.parent / "docs" / "kubernetes.md"


@pytest.fixture
def service() -> dict[str, Any]:
    """The RayService."""
    [manifest] = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    [found] = [document for document in yaml.safe_load_all(manifest) if document["kind"] == "RayService"]
    spec: dict[str, Any] = found["spec"]
    return spec


def containers(service: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = service["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def test_the_serve_file_of_the_manifest_is_accepted(service: dict[str, Any], tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("a-long-random-token")
    text = service["serveConfigV2"].replace("/run/secrets/rbee-serve/token", str(token_file))
    assert str(token_file) in text
    file = tmp_path / "serve_config.yaml"
    file.write_text(text)
    assert check_file(file).host == "0.0.0.0"


def test_the_manifest_names_the_version_of_ray_that_is_installed(service: dict[str, Any]) -> None:
    assert service["rayClusterConfig"]["rayVersion"] == importlib.metadata.version("ray")


def test_all_pods_have_the_token_file_and_the_same_variables_with_the_values_of_the_table(
    service: dict[str, Any],
) -> None:
    table = {setting.name: setting.value for setting in SETTINGS}
    head, *workers = containers(service)
    assert workers
    for container in workers:
        assert (container["env"], container["volumeMounts"]) == (head["env"], head["volumeMounts"])
    assert "/run/secrets/rbee-serve" in {mount["mountPath"] for mount in head["volumeMounts"]}
    plain = {variable["name"]: variable["value"] for variable in head["env"] if "value" in variable}
    assert {name: value for name, value in plain.items() if name.startswith("RAY_")}.items() <= table.items()
    assert len(port_range(plain)) > 1
