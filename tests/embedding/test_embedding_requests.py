"""Requests and options of the embedding worker; no model is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deployments.app import check
from deployments.embedding.embedding_engine import EmbeddingOptions, ModelCard
from deployments.embedding.embedding_worker import EmbeddingRequest
from rbee_serve.errors import ConfigurationError, InvalidRequest
from rbee_serve.validation.limits import with_limits
from rbee_serve.validation.parse import parse_object
from tests.model_files.tiny_models import model_folder


def test_a_single_text_becomes_a_list() -> None:
    assert parse_object(EmbeddingRequest, {"input": "a"}).input == ["a"]
    assert parse_object(EmbeddingRequest, {"input": ["a", "b"]}).input == ["a", "b"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "input"), ({"input": ""}, "input[0]"), ({"input": []}, "input"), ({"input": ["a", ""]}, "input[1]"),
        ({"input": 5}, "input"), ({"input": ["a", 5]}, "input[1]"), ({"input": None}, "input"),
        ({"input": ["a"] * 257}, "input"), ({"input": "a" * 131_073}, "input[0]"), ({"input": "\ud800"}, "input[0]"),
        ({"input": {"text": "a"}}, "input"), ({"input": [["a"]]}, "input[0]"), ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 65_537}, "dimensions"), ({"dimensions": 64.5}, "dimensions"), ({"normalize": 1}, "normalize"),
        ({"truncate": "yes"}, "truncate"), ({"encoding": "hex"}, "encoding"), ({"input_type": ""}, "input_type"),
        ({"max_tokens": 5}, "max_tokens"), ({"temperature": 0.5}, "temperature"), ({"top_p": 0.5}, "top_p"),
        ({"seed": 1}, "seed"), ({"prompt": "a"}, "prompt"),
    ],
)  # fmt: skip
def test_an_invalid_request_names_the_field(fields: dict[str, Any], field: str) -> None:
    invalid = fields if "input" in fields or not fields else {"input": "a", **fields}
    with pytest.raises(InvalidRequest) as caught:
        parse_object(EmbeddingRequest, invalid)
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize(
    "blank", [" ", "\n\t", "\u3000", "\u00a0\u2028", "\u200b", "\ufeff\u00ad", "\x00\x1f", "\u3164", "\u200d\ufe0f"]
)
def test_a_text_without_a_visible_character_is_refused_by_its_index(blank: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_object(EmbeddingRequest, {"input": ["a", blank, "b"]})
    [violation] = caught.value.violations
    assert (violation.field, violation.message) == ("input[1]", "must not be blank: it has no visible character")
    assert parse_object(EmbeddingRequest, {"input": [blank + "." + blank]}).input == [blank + "." + blank]


def test_an_error_does_not_contain_the_texts() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_object(EmbeddingRequest, {"input": ["a secret", 12345], "encoding": "hex"})
    assert "secret" not in str(caught.value.to_json())
    assert "12345" not in str(caught.value.to_json())


def test_limits_apply_to_the_number_of_texts_and_not_to_their_length() -> None:
    limited = with_limits(EmbeddingRequest, {"input": 1000})
    assert len(parse_object(limited, {"input": ["a" * 2000] * 1000}).input) == 1000
    with pytest.raises(InvalidRequest, match="at most 1000 items"):
        parse_object(limited, {"input": ["a"] * 1001})


def card(folder: Path, sentences: Any = None, config: Any = None, **options: Any) -> ModelCard:
    for name, content in {"config_sentence_transformers.json": sentences, "config.json": config}.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return ModelCard(folder, EmbeddingOptions(**options))


def test_configured_prompts_override_those_in_the_model_s_files(tmp_path: Path) -> None:
    sentences = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "passage"}
    found = card(tmp_path, sentences, prompts={"passage": "text: "})
    assert found.prompts == {"query": "query: ", "document": "", "passage": "text: "}
    assert found.default_prompt == "text: "


def test_a_model_without_prompts_has_empty_prompts_for_query_and_document(tmp_path: Path) -> None:
    found = card(tmp_path)
    assert (found.prompts, found.default_prompt) == ({"query": "", "document": ""}, "")


@pytest.mark.parametrize(
    ("config", "options", "lengths", "any_length"),
    [
        ({}, {}, (), False),
        ({"is_matryoshka": True}, {}, (), True),
        ({"matryoshka_dimensions": [32, 64]}, {}, (32, 64), False),
        ({"matryoshka_dimensions": [32, 64]}, {"matryoshka_dimensions": [64]}, (64,), False),
        ({}, {"is_matryoshka": True}, (), True),
    ],
)
def test_shortened_vectors_are_allowed_by_the_model_s_files_or_the_options(
    tmp_path: Path, config: Any, options: Any, lengths: tuple[int, ...], any_length: bool
) -> None:
    found = card(tmp_path, config=config, **options)
    assert (found.lengths, found.any_length) == (lengths, any_length)


@pytest.mark.parametrize(
    ("worker", "sentence"),
    [
        ({"engine": {"name": "onnx"}}, "engine.name: 'onnx' is unknown; known are sentence-transformers, vllm"),
        ({"engine": {"dtyp": "float16"}}, "engine.dtyp: unknown key"),
        ({"engine": {"matryoshka_dimensions": [0]}}, "engine.matryoshka_dimensions[0]: must be at least 1"),
        ({"engine": {"trust_remote_code": True}}, "engine.trust_remote_code: unknown key"),
        ({"engine": {"name": "vllm", "trust_remote_code": True}}, "engine.trust_remote_code: is refused"),
        ({"engine": {"name": "vllm"}, "backend": "metal"}, "backend: vllm cannot run on metal"),
        ({"gpus": 2}, "gpus: sentence-transformers uses one GPU"),
        ({"limits": {"inputs": 5}}, "limits.inputs: the request has no such field"),
    ],
)
def test_check_refuses_an_invalid_configuration(tmp_path: Path, worker: dict[str, Any], sentence: str) -> None:
    model = model_folder(tmp_path / "model")
    configured = {"id": "embedding-0", "type": "embedding", "model_ref": f"file:{model}", **worker}
    with pytest.raises(ConfigurationError) as caught:
        check({"workers": [configured]}, "127.0.0.1")
    assert f"workers[0].{sentence}" in str(caught.value)
