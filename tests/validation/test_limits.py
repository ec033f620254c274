"""Request types with other maxima: `limits:` of a worker."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from rbee_serve.errors import ConfigurationError, InvalidRequest
from rbee_serve.validation.parse import parse_object, with_limits
from tests.sample_request import SampleRequest


def test_without_limits_the_type_is_unchanged() -> None:
    assert with_limits(SampleRequest, {}) is SampleRequest


def test_the_same_limits_give_the_same_class() -> None:
    first = with_limits(SampleRequest, {"max_tokens": 4096, "prompt": 5})
    assert first is with_limits(SampleRequest, {"prompt": 5, "max_tokens": 4096})
    assert issubclass(first, SampleRequest)
    assert first.__name__ == "SampleRequest"


@pytest.mark.parametrize(
    ("limits", "good", "bad", "constraint"),
    [
        ({"max_tokens": 4096}, 4096, 4097, "<= 4096"),
        ({"max_tokens": 64}, 64, 65, "<= 64"),
        ({"temperature": 1.5}, 1.5, 1.6, "<= 1.5"),
        ({"top_p": 0.5}, 0.4, 0.5, "< 0.5"),
        ({"seed": 9}, 9, 10, "<= 9"),
        ({"prompt": 2}, "ab", "abc", "length <= 2"),
        ({"prompt": 50}, "a" * 50, "a" * 51, "length <= 50"),
        ({"stop": 1}, ["a"], ["a", "b"], "length <= 1"),
        ({"either": 5}, "aaaaa", "aaaaaa", "length <= 5"),
    ],
)
def test_a_limit_replaces_the_maximum(limits: dict[str, float], good: Any, bad: Any, constraint: str) -> None:
    limited = with_limits(SampleRequest, limits)
    (name,) = limits
    assert getattr(parse_object(limited, {"prompt": "a", name: good}), name) == good
    with pytest.raises(InvalidRequest) as caught:
        parse_object(limited, {"prompt": "a", name: bad})
    assert [(violation.field, violation.constraint) for violation in caught.value.violations] == [(name, constraint)]


def test_other_bounds_and_attributes_are_unchanged() -> None:
    limited = with_limits(SampleRequest, {"max_tokens": 64, "prompt": 5, "seed": 9})
    for name, field in limited.model_fields.items():
        before = SampleRequest.model_fields[name]
        assert (field.description, field.repr, field.is_required()) == (
            before.description,
            before.repr,
            before.is_required(),
        )
    assert parse_object(limited, {"prompt": "a", "seed": None}).seed is None
    with pytest.raises(InvalidRequest, match="seed: must not be 1"):
        parse_object(limited, {"prompt": "a", "seed": 1})
    with pytest.raises(InvalidRequest, match="at least 1"):
        parse_object(limited, {"prompt": "a", "max_tokens": 0})


def test_a_default_above_its_new_maximum_is_lowered_to_it() -> None:
    assert with_limits(SampleRequest, {"max_tokens": 64})(prompt="a").max_tokens == 64
    assert with_limits(SampleRequest, {"max_tokens": 4096})(prompt="a").max_tokens == 128


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"zebra": 1}, "limits.zebra: the request has no such field"),
        ({"logprobs": 1}, "limits.logprobs: the field has no maximum to replace"),
        ({"max_tokens": 0}, "limits.max_tokens: the maximum 0 is below the minimum 1"),
        ({"max_tokens": 1.5}, "limits.max_tokens: must be an integer, not 1.5"),
        ({"prompt": 1.5}, "limits.prompt: must be an integer, not 1.5"),
        ({"max_tokens": True}, "limits.max_tokens: must be a finite number"),
        ({"temperature": float("inf")}, "limits.temperature: must be a finite number"),
        ({"width": 100}, "limits.width: the default 100 is not valid with the maximum 100"),
        (
            {"zebra": 1, "max_tokens": 0},
            "limits.max_tokens: the maximum 0 is below the minimum 1\nlimits.zebra: the request has no such field",
        ),
    ],
)
def test_a_limit_that_cannot_be_applied_is_a_configuration_error(limits: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        with_limits(SampleRequest, limits)
    assert str(caught.value) == message


def test_a_limited_request_pickles_as_its_original_type() -> None:
    limited = with_limits(with_limits(SampleRequest, {"max_tokens": 64}), {"prompt": 5})
    request = limited(prompt="abc", seed=7)
    again = pickle.loads(pickle.dumps(request))
    assert type(again) is SampleRequest
    assert again == SampleRequest(prompt="abc", seed=7, max_tokens=64)
    assert again.model_fields_set == {"prompt", "seed"}
    assert copy.deepcopy(request) == request
