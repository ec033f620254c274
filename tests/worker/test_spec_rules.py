"""What a worker type declares is checked when its `WorkerSpec` is made."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Annotated, Any, Literal

import msgspec
import pytest
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import core_schema

from deployments.registry import WORKER_TYPES
from rbee_serve.events import EVENT_TYPES
from rbee_serve.worker import BlockingBackend, FileField, InferenceRequest, OutputValue, TokenOutput, WorkerSpec
from rbee_serve.worker.registry import load_spec


class WordOutput(OutputValue, frozen=True, kw_only=True, tag="word"):
    word: str
    i: int = 0


class Backend(BlockingBackend[Any, Any]):
    def predict(self, request: Any) -> Iterator[Any]:
        yield WordOutput(word="one")


def declare(request: Any = InferenceRequest, outputs: Any = (WordOutput,), **fields: Any) -> WorkerSpec[Any]:
    return WorkerSpec(name="words", request=request, outputs=outputs, load=Backend, warm_up=request, **fields)


def request_with(annotation: Any, default: Any = None) -> type[InferenceRequest]:
    """A request type with one field of its own, `field`."""
    return type("Request", (InferenceRequest,), {"__annotations__": {"field": annotation}, "field": default})


class LooseParts(BaseModel):
    part: Annotated[str, Field(max_length=3)] = ""


class StrictParts(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    text: str = ""


class Opaque:
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema.is_instance_schema(cls)


BOUNDED = [
    Annotated[int, Field(ge=0, lt=9)],
    Annotated[float, Field(gt=0, le=9)] | None,
    Annotated[str, Field(max_length=9)],
    Annotated[str, Field(pattern=r"^[a-z]{1,9}$")],
    Annotated[str, Field(pattern=r"^[a-z]+$", max_length=9)],
    Annotated[list[Annotated[str, Field(max_length=9)]], Field(max_length=9)] | None,
    Annotated[dict[str, Annotated[int, Field(ge=0, le=9)]], Field(max_length=9)],
    Annotated[bytes, Field(max_length=9), FileField("image")],
    Literal["a", 1],
    date,
    bool,
    tuple[Annotated[int, Field(ge=0, le=9)], bool],
]
UNBOUNDED = [
    (int, "has no lower bound: add ge= or gt="),
    (Annotated[int, Field(ge=0)], "has no upper bound: add le= or lt="),
    (Annotated[float, Field(le=0)] | None, "has no lower bound"),
    (str, "has no largest length"),
    (Annotated[str, Field(pattern=r"^[a-z]+$")], "has no largest length"),
    (Annotated[str, Field(pattern=r"^[a-z]{3,}$")], "has no largest length"),
    (Annotated[bytes, FileField("image")], "has no largest length"),
    (list[bool], "has no largest number of items"),
    (Annotated[list[str], Field(max_length=9)], "has no largest length"),
    (tuple[int, bool], "has no lower bound"),
    (dict[str, bool], "has no largest number of keys"),
    (Annotated[dict[str, int], Field(max_length=9)], "has no upper bound"),
    (Any, "accepts any value"),
]


@pytest.mark.parametrize("annotation", BOUNDED, ids=map(str, BOUNDED))
def test_a_bounded_field_is_accepted(annotation: Any) -> None:
    declare(request_with(annotation))


@pytest.mark.parametrize(("annotation", "fault"), UNBOUNDED, ids=[str(annotation) for annotation, _ in UNBOUNDED])
def test_an_unbounded_field_is_refused_by_its_name(annotation: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=rf"^worker type words: .*Request\.field {fault}"):
        declare(request_with(annotation))


def test_the_fields_of_nested_objects_are_checked_too() -> None:
    with pytest.raises(ValueError, match=r"StrictParts\.text has no largest length"):
        declare(request_with(StrictParts | None))
    with pytest.raises(ValueError, match="LooseParts must refuse unknown fields: set extra='forbid'"):
        declare(request_with(Annotated[list[LooseParts], Field(max_length=2)] | None))


def test_a_request_that_is_not_strict_is_refused() -> None:
    class Loose(InferenceRequest):
        model_config = ConfigDict(extra="ignore", strict=False, allow_inf_nan=True)

    with pytest.raises(ValueError, match="worker type words") as caught:
        declare(Loose)
    for option in ("'extra'] must be 'forbid'", "'strict'] must be True", "'allow_inf_nan'] must be False"):
        assert f"Loose.model_config[{option}" in str(caught.value)


def test_a_request_must_be_an_inference_request_that_json_can_hold() -> None:
    class Other(BaseModel):
        pass

    with pytest.raises(ValueError, match="must be a subclass of InferenceRequest"):
        declare(Other)
    with pytest.raises(ValueError, match="field that JSON cannot hold"):
        declare(request_with(Opaque | None))


@pytest.mark.parametrize("tag", sorted(EVENT_TYPES))
def test_an_output_may_not_have_the_tag_of_an_event(tag: str) -> None:
    bad = msgspec.defstruct("Bad", [("i", int)], bases=(OutputValue,), tag=tag, tag_field="type", kw_only=True)
    with pytest.raises(ValueError, match=f"the output Bad has the tag '{tag}', which is an event of every stream"):
        declare(outputs=(bad,))


def test_an_output_needs_a_tag_of_its_own_and_an_index() -> None:
    class Untagged(OutputValue, frozen=True, kw_only=True):
        i: int

    class Numbered(OutputValue, frozen=True, kw_only=True, tag=7):
        i: int

    class Unindexed(OutputValue, frozen=True, kw_only=True, tag="unindexed"):
        i: int
        after: str

    class Twin(OutputValue, frozen=True, kw_only=True, tag="word"):
        i: int

    class OtherToken(OutputValue, frozen=True, kw_only=True, tag="token"):
        i: int

    for outputs, fault in [
        ((Untagged,), "the output Untagged has no tag"),
        ((Numbered,), "the output Numbered must have a text as its tag"),
        ((Unindexed,), "the output Unindexed must end with the field i"),
        ((WordOutput, Twin), "the outputs WordOutput and Twin have the same tag 'word'"),
        ((OtherToken,), "the output OtherToken has the tag 'token' of TokenOutput"),
        ((dict,), "the output dict must be a subclass of OutputValue"),
        ((), "outputs is empty"),
    ]:
        with pytest.raises(ValueError, match=fault):
            declare(outputs=outputs)
    declare(outputs=(WordOutput, TokenOutput))


def test_every_fault_is_reported_at_once() -> None:
    with pytest.raises(ValueError, match="worker type words") as caught:
        declare(request_with(str | int), (), own_process=True, roles={"audio": "audio/generate"})
    for fault in ("no largest length", "no lower bound", "no upper bound", "outputs is empty", "own_process"):
        assert fault in str(caught.value)


@pytest.mark.parametrize("name", sorted(WORKER_TYPES))
def test_the_registered_name_is_the_full_name_of_the_type(name: str) -> None:
    assert load_spec(WORKER_TYPES[name]).full_name == name
