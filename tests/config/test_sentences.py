"""The sentences about faults in the configuration: our words for every kind of fault, and the path in the file."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_core._pydantic_core import list_all_errors

from rbee_serve.config import ApplicationConfig, WorkerConfig, parse_application, parse_mapping
from rbee_serve.config.sentences import sentence_of
from rbee_serve.errors import ConfigurationError
from rbee_serve.supervisor.serve_schema import ServeFile

FOREIGN = ("Input should", "String should", "should be", "should have", "valid dictionary", "pydantic", "Value error")


@pytest.mark.parametrize("error", list_all_errors(), ids=lambda error: error["type"])
def test_every_kind_of_fault_has_a_sentence_of_ours(error: Any) -> None:
    context = dict(error.get("example_context") or {})
    if error["type"] == "value_error":
        context["error"] = ValueError("must be even, such as 4")
    for value in ("x", 3, 2.5, True, None, [1], {"a": 1}, object()):
        sentence = sentence_of(error["type"], context, value, None)
        assert sentence.startswith(("must ", "has ", "is ")), sentence
        assert not any(phrase in sentence for phrase in FOREIGN), sentence


WRONG: list[Any] = [None, "x y", -1, 2.5, True, [], [1], {}, {"a": 1}, {3: 4}, "http://", 10**30, float("nan")]


def faults(parse: Any, *args: Any) -> str:
    try:
        parse(*args)
    except ConfigurationError as exc:
        return str(exc)
    return ""


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_no_fault_of_any_key_is_described_in_the_words_of_a_library(value: Any) -> None:
    worker = {"id": "echo-0", "type": "echo"}
    files = [{"applications": [{"import_path": "a:b"}], key: value} for key in ServeFile.model_fields]
    found = [
        *(faults(parse_application, {"workers": [worker | {key: value}]}) for key in WorkerConfig.model_fields),
        *(faults(parse_application, {"workers": [worker], key: value}) for key in ApplicationConfig.model_fields),
        *(faults(parse_mapping, ServeFile, file) for file in files),
    ]
    assert any(found)
    for line in "\n".join(filter(None, found)).splitlines():
        path, colon, sentence = line.partition(": ")
        assert colon, line
        assert path, line
        assert sentence, line
        assert not any(phrase in line for phrase in FOREIGN), line
