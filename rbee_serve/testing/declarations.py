"""The part of the contract that needs no model: descriptions, sample requests and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rbee_serve.errors import InvalidRequest
from rbee_serve.request import InferenceRequest
from rbee_serve.testing.failure import fail
from rbee_serve.validation.parse import parse
from rbee_serve.worker.spec import WorkerSpec


def check_declarations(spec: WorkerSpec[Any]) -> None:
    """Every field has a description, and both sample requests are valid. The bounds of the fields and the tags of the
    outputs were checked when the `WorkerSpec` was made."""
    for name, field in spec.request.model_fields.items():
        if not field.description:
            fail(spec, f"the field {name} of the request has no description; write a string literal below it")
    if spec.long_request is None:
        fail(spec, "long_request is not set; give a valid request that takes seconds")
    for attribute, sample in (("warm_up", spec.warm_up), ("long_request", spec.long_request)):
        _check_sample(spec, attribute, sample)


def _check_sample(spec: WorkerSpec[Any], attribute: str, sample: Callable[[], InferenceRequest]) -> None:
    request = sample()
    if not isinstance(request, spec.request):
        fail(spec, f"{attribute}() returns a {type(request).__name__}; it must return a {spec.request.__name__}")
    try:
        parsed = parse(spec.request, body_of(request))
    except InvalidRequest as exc:
        fail(spec, f"{attribute}() is refused as an invalid request: {exc.message}", exc)
    if parsed != request:
        fail(spec, f"{attribute}() changes when it is sent as JSON; every field must survive model_dump_json()")


def check_refusals(spec: WorkerSpec[Any], request_type: type[InferenceRequest]) -> None:
    """A bad request is refused with a violation for each bad field, all at once."""
    schema = request_type.model_json_schema()
    _check_violations(spec, request_type, {}, set(schema.get("required", ())), "is missing")
    bad: dict[str, Any] = {"no_such_field": 1}
    for field, option in schema["properties"].items():
        for choice in [option, *option.get("anyOf", ())]:
            if (maximum := choice.get("maximum", choice.get("exclusiveMaximum"))) is not None:
                bad[field] = maximum + 1
    sample = json.loads(body_of(spec.warm_up()))
    _check_violations(spec, request_type, {**sample, **bad}, set(bad), "has a bad value")


def _check_violations(
    spec: WorkerSpec[Any], request_type: type[InferenceRequest], fields: dict[str, Any], bad: set[str], fault: str
) -> None:
    try:
        parse(request_type, json.dumps(fields).encode())
        reported = set[str]()
    except InvalidRequest as exc:
        reported = {violation.field for violation in exc.violations}
    except Exception as exc:
        fail(spec, f"a validator raised {type(exc).__name__} for a bad request; raise ValueError or violated()", exc)
    if unreported := sorted(bad - reported):
        fail(
            spec,
            f"a request whose field {unreported[0]} {fault} is not refused for that field; "
            "a validator with mode='before' or 'wrap' must let the checks of other fields run",
        )


def body_of(request: InferenceRequest) -> bytes:
    """The JSON that a client sends for `request`."""
    return request.model_dump_json(exclude_unset=True).encode()
