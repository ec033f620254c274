"""What every registered worker type promises, without loading its model."""

from __future__ import annotations

import math
from typing import Any

import annotated_types
import pytest
from pydantic import BaseModel

from deployments.registry import WORKER_TYPES
from rbee_serve.outputs import OutputValue
from rbee_serve.request import InferenceRequest
from rbee_serve.worker.registry import load_spec
from rbee_serve.worker.spec import WorkerSpec

every_type = pytest.mark.parametrize("name", sorted(WORKER_TYPES))


def spec_of(name: str) -> WorkerSpec[Any]:
    return load_spec(WORKER_TYPES[name])


def numbers(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Each numeric field's schema, with `$defs` of nested models included."""
    schema = model.model_json_schema()
    found: dict[str, dict[str, Any]] = {}
    for owner, part in {"": schema, **schema.get("$defs", {})}.items():
        for name, field in part.get("properties", {}).items():
            for option in [field, *field.get("anyOf", ())]:
                if option.get("type") in ("integer", "number"):
                    found[f"{owner}.{name}"] = option
    return found


@every_type
def test_the_registered_name_is_the_type_s_own(name: str) -> None:
    spec = spec_of(name)
    assert "/".join(filter(None, (spec.name, spec.task))) == name


@every_type
def test_every_number_of_a_request_has_both_bounds_and_is_finite(name: str) -> None:
    for field, schema in numbers(spec_of(name).request).items():
        assert {"minimum", "exclusiveMinimum"} & set(schema), f"{field} has no lower bound"
        upper = schema.get("maximum", schema.get("exclusiveMaximum"))
        assert upper is not None, f"{field} has no upper bound"
        assert math.isfinite(upper)
    assert spec_of(name).request.model_config["allow_inf_nan"] is False


@every_type
def test_every_text_and_list_of_a_request_has_a_largest_length_or_a_fixed_set(name: str) -> None:
    for field_name, field in spec_of(name).request.model_fields.items():
        text = str(field.annotation)
        if field_name == "job_id" or not ("str" in text or "list" in text) or "Literal" in text:
            continue
        bounded = any(isinstance(m, annotated_types.MaxLen) or "MaxLen" in repr(m) for m in field.metadata)
        assert bounded or "max_length" in text or "pattern" in repr(field), f"{field_name} has no largest length"


@every_type
def test_requests_are_strict_and_know_no_other_field(name: str) -> None:
    config = spec_of(name).request.model_config
    assert issubclass(spec_of(name).request, InferenceRequest)
    assert (config["extra"], config["strict"]) == ("forbid", True)


@every_type
def test_every_field_of_a_request_has_a_sentence(name: str) -> None:
    for field_name, field in spec_of(name).request.model_fields.items():
        assert field.description, f"{field_name} is not described"


@every_type
def test_the_warm_up_request_is_small_and_valid(name: str) -> None:
    request = spec_of(name).warm_up()
    assert spec_of(name).request.model_validate_json(request.model_dump_json(exclude_unset=True)) == request


@every_type
def test_outputs_carry_a_wire_name_and_count_from_their_last_field(name: str) -> None:
    outputs = spec_of(name).outputs
    assert outputs
    for output in outputs:
        assert issubclass(output, OutputValue)
        assert output.wire_name() != OutputValue.wire_name()
        assert output.__struct_fields__[-1] == "i"
