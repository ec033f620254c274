"""Finding a worker type by name or import string."""

from __future__ import annotations

import pytest

from deployments.echo import SPEC
from rbee_serve.errors import ConfigurationError
from rbee_serve.worker.registry import import_path, load_spec

TABLE = {"echo": "deployments.echo:SPEC", "audio/transcribe": "a:TRANSCRIBE", "audio/generate": "a:GENERATE"}


@pytest.mark.parametrize(
    ("type_name", "task", "path"),
    [
        ("echo", None, "deployments.echo:SPEC"),
        ("audio", None, "a:TRANSCRIBE"),
        ("audio", "transcribe", "a:TRANSCRIBE"),
        ("audio", "generate", "a:GENERATE"),
        ("other_package.worker:SPEC", None, "other_package.worker:SPEC"),
    ],
)
def test_a_type_and_its_task_name_a_spec(type_name: str, task: str | None, path: str) -> None:
    assert import_path(type_name, task, TABLE) == path


@pytest.mark.parametrize(
    ("type_name", "task", "fault"),
    [
        ("ecko", None, "type: worker type 'ecko' is unknown; did you mean echo?"),
        ("x", None, "type: worker type 'x' is unknown; known are audio, echo, or 'module:ATTRIBUTE'"),
        ("audio", "sing", "task: 'sing' is unknown; audio has transcribe, generate"),
        ("echo", "sing", "task: 'sing' is unknown; echo has none"),
        ("other_package.worker:SPEC", "sing", "task: 'sing' is unknown; other_package.worker:SPEC has none"),
    ],
)
def test_an_unknown_name_is_reported_by_its_key(type_name: str, task: str | None, fault: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        import_path(type_name, task, TABLE)
    assert str(caught.value) == fault


def test_a_spec_is_imported_by_its_path() -> None:
    assert load_spec("deployments.echo:SPEC") is SPEC
    for path in ("deployments.nothing:SPEC", "deployments.echo:NOTHING", "deployments.echo"):
        with pytest.raises(ConfigurationError, match=r"^type: "):
            load_spec(path)
