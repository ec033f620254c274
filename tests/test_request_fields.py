"""The request fields that several worker types share."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.audio import SpeechRequest
from deployments.llm import LlmRequest
from deployments.multimodal.multimodal_request import MultimodalRequest
from deployments.vision import ImageRequest
from rbee_serve.errors import InvalidRequest
from rbee_serve.validation.parse import parse, parse_object, with_limits

SEEDED: list[Any] = [SpeechRequest, LlmRequest, MultimodalRequest, ImageRequest]


@pytest.mark.parametrize("request_type", SEEDED)
def test_a_seed_of_minus_one_is_as_good_as_left_out(request_type: Any) -> None:
    assert parse_object(request_type, {"prompt": "a", "seed": -1}).seed is None
    assert parse(request_type, b'{"prompt": "a", "seed": -1}').seed is None
    assert parse(request_type, b'{"prompt": "a", "seed": 0}').seed == 0
    assert parse(with_limits(request_type, {"seed": 9}), b'{"prompt": "a", "seed": -1}').seed is None


@pytest.mark.parametrize("request_type", SEEDED)
@pytest.mark.parametrize(
    ("seed", "message"), [(-2, "at least 0"), (2**64, "at most"), (-1.5, "integer"), ("-1", "int")]
)
def test_other_seeds_outside_the_bounds_are_refused(request_type: Any, seed: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"seed: must be .*{message}"):
        parse_object(request_type, {"prompt": "a", "seed": seed})


def test_the_seed_of_an_image_within_an_answer_may_be_any_too() -> None:
    fields = {"prompt": "a", "modalities": ["text", "image"], "picture": {"seed": -1}}
    picture = parse_object(MultimodalRequest, fields).picture
    assert picture is not None
    assert picture.seed is None
