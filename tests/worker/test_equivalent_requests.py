"""What means the same in a request means the same for every worker type, at the ingress and in the replica."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from deployments.registry import WORKER_TYPES
from rbee_serve.request import InferenceRequest
from rbee_serve.validation.field_types import fields_of, items_of, members_of
from rbee_serve.validation.parse import parse, parse_object
from rbee_serve.worker.registry import load_spec

WHOLE = {"sample_rate": 8000, "preview_every": 0, "min_tokens": 1}
"""Values within the rules of fields for which 8 is not."""


def request_and_body(name: str) -> tuple[type[InferenceRequest], dict[str, Any]]:
    """The type's request, and the JSON of one."""
    spec = load_spec(WORKER_TYPES[name])
    return spec.request, json.loads(spec.warm_up().model_dump_json(exclude_unset=True))


def optional(model: type[BaseModel]) -> list[str]:
    return [name for name, field in fields_of(model).items() if not field.is_required()]


def models_within(annotation: Any) -> Iterator[type[BaseModel]]:
    for member in members_of(annotation):
        if fields_of(member):
            yield member
        for item in items_of(member):
            yield from models_within(item)


@pytest.mark.parametrize("name", WORKER_TYPES)
def test_null_gives_the_request_that_leaving_the_field_out_gives(name: str) -> None:
    request_type, body = request_and_body(name)
    without = parse(request_type, json.dumps(body).encode())
    for field in sorted(set(optional(request_type)) - body.keys()):
        with_null = parse(request_type, json.dumps({**body, field: None}).encode())
        assert with_null == without, field
        crossed = parse_object(request_type, with_null.model_dump(exclude_unset=True), strict=False)
        assert crossed == without, field
    all_null = dict.fromkeys(set(optional(request_type)) - body.keys())
    assert parse(request_type, json.dumps({**body, **all_null}).encode()) == without


@pytest.mark.parametrize("name", WORKER_TYPES)
def test_null_means_left_out_in_the_objects_of_a_request_too(name: str) -> None:
    for field in request_and_body(name)[0].model_fields.values():
        for model in models_within(field.annotation):
            if len(optional(model)) == len(model.model_fields):
                nulls = dict.fromkeys(optional(model))
                holder = type("Holder", (InferenceRequest,), {"__annotations__": {"inner": model}})
                assert parse(holder, json.dumps({"inner": nulls}).encode()) == parse(holder, b'{"inner":{}}')


@pytest.mark.parametrize("name", WORKER_TYPES)
def test_a_whole_number_may_be_written_with_a_fraction(name: str) -> None:
    request_type, body = request_and_body(name)
    for field, info in request_type.model_fields.items():
        if int in members_of(info.annotation):
            whole = WHOLE.get(field, 8)
            expected = parse(request_type, json.dumps({**body, field: whole}).encode())
            assert parse(request_type, json.dumps({**body, field: float(whole)}).encode()) == expected, field
