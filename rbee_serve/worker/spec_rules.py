"""The rules of a worker type that can be checked from its declarations, without loading a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ConfigDict
from pydantic.errors import PydanticInvalidForJsonSchema

from rbee_serve.events import EVENT_TYPES
from rbee_serve.outputs import OutputValue, TokenOutput
from rbee_serve.request import InferenceRequest

_REQUIRED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_BOUNDED_FORMATS = frozenset({"date", "date-time", "time", "uuid"})
_UNBOUNDED_PATTERN = re.compile(r"(?<!\\)[*+]|\{\d*,\}")


def request_faults(request_type: object) -> Iterator[str]:
    """A sentence for each field without bounds, and for a base class or a configuration that is not strict.

    An unbounded field lets one client use any amount of memory or time.
    """
    if not (isinstance(request_type, type) and issubclass(request_type, InferenceRequest)):
        yield f"the request {request_type!r} must be a subclass of InferenceRequest"
        return
    name = request_type.__name__
    for option, value in _REQUIRED.items():
        if request_type.model_config.get(option) != value:
            yield f"{name}.model_config[{option!r}] must be {value!r}, as in InferenceRequest"
    try:
        schema = request_type.model_json_schema()
    except PydanticInvalidForJsonSchema as exc:
        yield f"{name} has a field that JSON cannot hold: {exc.message}"
        return
    definitions: Mapping[str, Any] = schema.get("$defs", {})
    for owner, part in {name: schema, **definitions}.items():
        if "properties" in part and part.get("additionalProperties") is not False:
            yield f"{owner} must refuse unknown fields: set extra='forbid' in its model_config"
        for field, option in part.get("properties", {}).items():
            yield from (f"{owner}.{field} {fault}" for fault in dict.fromkeys(_value_faults(option)))


def _value_faults(schema: Mapping[str, Any]) -> Iterator[str]:
    """What is unbounded in the value of a field, given the field's JSON schema."""
    options = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    for option in options:
        yield from _value_faults(option)
    if {"enum", "const", "$ref"} & schema.keys():  # what $ref points to is in $defs and has its own turn
        return
    match schema.get("type"):
        case "integer" | "number":
            if not {"minimum", "exclusiveMinimum"} & schema.keys():
                yield "has no lower bound: add ge= or gt="
            if not {"maximum", "exclusiveMaximum"} & schema.keys():
                yield "has no upper bound: add le= or lt="
        case "string":
            pattern = schema.get("pattern")
            bounded = "maxLength" in schema or schema.get("format") in _BOUNDED_FORMATS
            if not bounded and (pattern is None or _UNBOUNDED_PATTERN.search(pattern)):
                yield "has no largest length: add max_length="
        case "array":
            if "maxItems" not in schema:
                yield "has no largest number of items: add max_length="
            for item in (schema.get("items"), *schema.get("prefixItems", ())):
                yield from _value_faults(item) if item else ()
        case "object" if "properties" not in schema:
            if "maxProperties" not in schema:
                yield "has no largest number of keys: add max_length="
            if isinstance(values := schema.get("additionalProperties"), dict):
                yield from _value_faults(values)
        case None if not options:
            yield "accepts any value: give it a type"


def output_faults(output_types: Sequence[object]) -> Iterator[str]:
    """A sentence for each output class that would break the stream of its own worker type."""
    if not output_types:
        yield "outputs is empty; list the classes that the backend yields"
    tags: dict[str, str] = {}
    for output_type in output_types:
        name = getattr(output_type, "__name__", repr(output_type))
        if not (isinstance(output_type, type) and issubclass(output_type, OutputValue)):
            yield f"the output {name} must be a subclass of OutputValue"
            continue
        config, tag = output_type.__struct_config__, output_type.wire_name()
        if tag == OutputValue.wire_name():
            yield f"the output {name} has no tag: class {name}(OutputValue, frozen=True, kw_only=True, tag=…)"
        elif config.tag_field != "type" or not isinstance(config.tag, str):
            yield f"the output {name} must have a text as its tag, in the field 'type'"
        elif tag in EVENT_TYPES:
            yield f"the output {name} has the tag {tag!r}, which is an event of every stream; choose another"
        elif tag == TokenOutput.wire_name() and not issubclass(output_type, TokenOutput):
            yield f"the output {name} has the tag {tag!r} of TokenOutput; choose another"
        elif other := tags.get(tag):
            yield f"the outputs {other} and {name} have the same tag {tag!r}"
        tags.setdefault(tag, name)
        if output_type.__struct_fields__[-1:] != ("i",):
            yield f"the output {name} must end with the field i: int, its index among the outputs of its class"
