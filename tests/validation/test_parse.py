"""Requests from bytes: every violation is listed, no content is returned, and no body is slow."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from rbee_serve.errors import InvalidRequest, Violation
from rbee_serve.request import InferenceRequest
from rbee_serve.validation.parse import MAX_VALUES, MAX_VIOLATIONS, parse, parse_object
from tests.sample_request import SECRET, SampleRequest


def violations(body: bytes | str | dict[str, Any]) -> list[Violation]:
    """The violations of a body; a dict is sent with a valid prompt."""
    if isinstance(body, dict):
        body = json.dumps({"prompt": "a", **body})
    with pytest.raises(InvalidRequest) as caught:
        parse(SampleRequest, body if isinstance(body, bytes) else body.encode())
    return list(caught.value.violations)


def listed(body: bytes | str | dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(violation.field, violation.constraint, violation.message) for violation in violations(body)]


def test_a_valid_body_becomes_a_request() -> None:
    request = parse(SampleRequest, b'{"prompt":"a","max_tokens":2048,"temperature":1,"stream":false}')
    assert (request.prompt, request.max_tokens, request.temperature, request.stream) == ("a", 2048, 1.0, False)


@pytest.mark.parametrize(
    ("fields", "violation"),
    [
        ({"max_tokens": 0}, ("max_tokens", ">= 1", "must be at least 1")),
        ({"max_tokens": 2049}, ("max_tokens", "<= 2048", "must be at most 2048")),
        ({"max_tokens": True}, ("max_tokens", "type: integer", "must be an integer")),
        ({"max_tokens": 1.5}, ("max_tokens", "type: integer", "must be an integer")),
        ({"max_tokens": 4096.0}, ("max_tokens", "<= 2048", "must be at most 2048")),
        ({"seed": 1e18}, ("seed", "type: integer", "must be an integer")),
        ({"max_tokens": "1"}, ("max_tokens", "type: integer", "must be an integer")),
        ({"temperature": 2.5}, ("temperature", "<= 2", "must be at most 2")),
        ({"temperature": True}, ("temperature", "type: number", "must be a number")),
        ({"temperature": float("nan")}, ("temperature", "finite", "must be a finite number")),
        ({"temperature": float("-inf")}, ("temperature", "finite", "must be a finite number")),
        ({"top_p": 0}, ("top_p", "> 0", "must be more than 0")),
        ({"top_p": 1}, ("top_p", "< 1", "must be less than 1")),
        ({"seed": 2**64}, ("seed", f"<= {2**64 - 1}", f"must be at most {2**64 - 1}")),
        ({"width": 9}, ("width", "multiple of 8", "must be a multiple of 8")),
        ({"logprobs": 1}, ("logprobs", "type: boolean", "must be a boolean")),
        ({"prompt": ""}, ("prompt", "length >= 1", "must not be empty")),
        ({"prompt": "a" * 21}, ("prompt", "length <= 20", "must have at most 20 characters")),
        ({"prompt": None}, ("prompt", "required", "is required")),
        ({"parts": [{"role": None}]}, ("parts[0].role", "required", "is required")),
        ({"stop": [None]}, ("stop[0]", "type: string", "must be a string")),
        ({"labels": {"a": None}}, ("labels.a", "type: integer", "must be an integer")),
        ({"zebra": None, "max_tokens": None}, ("zebra", "unknown field", "is not a field of this request")),
        ({"stop": ["a"] * 5}, ("stop", "length <= 4", "must have at most 4 items")),
        ({"stop": "a"}, ("stop", "type: array", "must be an array")),
        ({"stop": ["a", ""]}, ("stop[1]", "length >= 1", "must not be empty")),
        ({"parts": [3]}, ("parts[0]", "type: object", "must be a JSON object")),
        ({"parts": [{}]}, ("parts[0].role", "required", "is required")),
        ({"parts": [{"role": "cat"}]}, ("parts[0].role", "one of: user, system", "must be one of user, system")),
        ({"labels": {"a": "b"}}, ("labels.a", "type: integer", "must be an integer")),
        ({"either": 3}, ("either", "type: string | array", "must be a string or an array")),
        ({"either": "aaaa"}, ("either", "length <= 3", "must have at most 3 characters")),
        ({"either": ["a", 3]}, ("either[1]", "type: string", "must be a string")),
        ({"job_id": "a b"}, ("job_id", "pattern: ^[A-Za-z0-9._-]{1,128}$", "must match ^[A-Za-z0-9._-]{1,128}$")),
        ({"seed": 1}, ("seed", "rule", "must not be 1")),
        ({"seed": 2}, ("seed", "rule", "two is taken")),
        ({"seed": 3}, ("body", "rule", "give exactly one of seed and width")),
        ({"seed": 4}, ("width", "width * {height}", "choose {another}")),
        ({"seed": 5}, ("body", "rule", "is not valid")),
        ({"": 1}, ('""', "unknown field", "is not a field of this request")),
        ({"labels": {"": "b"}}, ('labels.""', "type: integer", "must be an integer")),
        ({"zebra": 1}, ("zebra", "unknown field", "is not a field of this request")),
        (
            {"max_token": 1},
            ("max_token", "unknown field", "is not a field of this request; did you mean max_tokens?"),
        ),
        (
            {"parts": [{"role": "user", "txt": ""}]},
            ("parts[0].txt", "unknown field", "is not a field of this object; did you mean text?"),
        ),
    ],
)
def test_an_invalid_field_is_listed_with_its_rule(fields: dict[str, Any], violation: tuple[str, str, str]) -> None:
    assert listed(fields) == [violation]


def test_all_violations_are_listed_at_once() -> None:
    found = violations('{"max_tokens":0,"temperature":3,"stop":[""],"zebra":1}')
    assert {violation.field for violation in found} == {"prompt", "max_tokens", "temperature", "stop[0]", "zebra"}


NOT_JSON = {
    "empty": b"",
    "blank": b"  ",
    "truncated": b'{"prompt":"a',
    "trailing text": b'{"prompt":"a"} x',
    "a comment": b'{"prompt":"a" /* */}',
    "a control character": b'{"prompt":"a\nb"}',
    "an integer of 5,000 digits": b'{"prompt":"a","max_tokens":' + b"9" * 5000 + b"}",
    "lone surrogates": b'{"prompt":"\\ud800"}',
    "bytes that are not UTF-8": b'{"prompt":"\xff"}',
    "UTF-16": '{"prompt":"a"}'.encode("utf-16"),
    "UTF-16 without a byte order mark": '{"prompt":"a"}'.encode("utf-16-le"),
    "UTF-16 big-endian": '{"prompt":"a"}'.encode("utf-16-be"),
    "UTF-32": '{"prompt":"a"}'.encode("utf-32"),
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_invalid_json_is_a_violation_of_the_body(body: bytes) -> None:
    assert [(violation.field, violation.constraint) for violation in violations(body)] == [("body", "json")]


def test_a_byte_order_mark_is_no_part_of_the_body() -> None:
    assert parse(SampleRequest, b'\xef\xbb\xbf{"prompt":"a"}').prompt == "a"


def test_null_means_not_given_for_a_field_that_has_no_null() -> None:
    fields = dict.fromkeys(SampleRequest.model_fields) | {"prompt": "a", "parts": [{"role": "user", "text": None}]}
    request = parse(SampleRequest, json.dumps(fields).encode())
    assert request == parse(SampleRequest, b'{"prompt":"a","parts":[{"role":"user"}]}')
    assert request == parse_object(SampleRequest, fields)
    assert fields["max_tokens"] is None  # the caller's own object is left as it is


def test_a_whole_number_is_an_integer_however_it_is_written() -> None:
    request = parse(SampleRequest, b'{"prompt":"a","max_tokens":16.0,"seed":5e3,"labels":{"a":-2.0},"temperature":1.0}')
    assert (request.max_tokens, request.seed, request.labels, request.temperature) == (16, 5000, {"a": -2}, 1.0)
    assert all(type(number) is int for number in (request.max_tokens, request.seed, request.labels["a"]))
    assert parse_object(SampleRequest, {"prompt": "a", "max_tokens": 16.0}).max_tokens == 16


def test_deep_values_of_unknown_fields_are_not_followed() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InvalidRequest):
        parse_object(SampleRequest, {"prompt": None, "zebra": deep})


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b'{"a":' + b"[" * 9_999 + b"]" * 9_999 + b"}"])
def test_deep_nesting_is_a_violation_of_the_body(body: bytes) -> None:
    assert [(violation.field, violation.constraint) for violation in violations(body)] == [("body", "depth")]


@pytest.mark.parametrize("body", [b"null", b"3", b"[]", b'"a"', b"NaN", b"true"])
def test_json_other_than_an_object_is_a_violation_of_the_body(body: bytes) -> None:
    assert listed(body) == [("body", "type: object", "must be a JSON object")]


def test_the_last_of_two_equal_keys_counts() -> None:
    assert parse(SampleRequest, b'{"prompt":"a","max_tokens":0,"max_tokens":5}').max_tokens == 5


def test_a_short_value_is_returned() -> None:
    (violation,) = violations({"max_tokens": 4096})
    assert (violation.value, violation.has_value) == (4096, True)
    (violation,) = violations({"job_id": "a b"})
    assert violation.value == "a b"
    (violation,) = violations({"stop": [None]})
    assert violation.to_json()["value"] is None


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [SECRET]},
        {"prompt": SECRET * 2},
        {"prompt": 12345},
        {"parts": [{"role": "user", "text": SECRET * 2}]},
        {"parts": [{"role": "user", "text": 12345}]},
        {"parts": [SECRET] * 2, "stop": {SECRET: 12345}},
        {"job_id": SECRET * 8},
        {"zebra": SECRET},
        {"zebra": 12345},
        {"stop": [SECRET * 10]},
        {"either": {"a": SECRET}},
        {"seed": 5},
    ],
)
def test_content_and_long_values_are_not_returned(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(SampleRequest, json.dumps({"prompt": SECRET, **fields}).encode())
    if fields.get("parts") != [SECRET] * 2:  # list items are not declared as content
        assert SECRET not in json.dumps(caught.value.to_json())
    assert "12345" not in json.dumps(caught.value.to_json())


def test_a_huge_number_is_not_returned() -> None:
    (violation,) = violations('{"prompt":"a","seed":' + "9" * 4000 + "}")
    assert (violation.field, violation.has_value) == ("seed", False)


def test_at_most_max_violations_are_listed() -> None:
    found = violations({f"k{i}": 1 for i in range(100)})
    assert len(found) == MAX_VIOLATIONS + 1
    assert found[-1] == Violation("body", "valid", "has 36 more errors")


def json_array(item: bytes, count: int) -> bytes:
    return b"[" + b",".join([item] * count) + b"]"


HOSTILE = {
    "many unknown keys": b"{" + b",".join(b'"k%d":1' % i for i in range(MAX_VALUES - 1)) + b"}",
    "near misses": b"{" + b",".join(b'"max_tokenz%d":1' % i for i in range(900)) + b"}",
    "unknown keys of 1 MB": b"{" + b",".join(b'"%d%s":1' % (i, b"k" * 1_000_000) for i in range(8)) + b"}",
    "many invalid objects": b'{"prompt":"a","parts":' + json_array(b"{}", 9_999) + b"}",
    "many invalid items of a union": b'{"prompt":"a","either":' + json_array(b"1", 900) + b"}",
    "a million values": b'{"prompt":"a","labels":' + json_array(b"1", 1_000_000) + b"}",
    "a million strings": b'{"prompt":"a","labels":' + json_array(b'"a"', 1_000_000) + b"}",
    "an unterminated string": b'"\\' * 5_000_000,
    "a prompt of 10 MB": b'{"prompt":"' + b"a, " * 3_500_000 + b'"}',
    "a prompt of escapes": b'{"prompt":"' + rb"\",\\" * 2_000_000 + b'"}',
    "a name of 10 MB": b'{"' + b"max_tokens" * 1_000_000 + b'":1}',
    "long integers": b'{"prompt":"a","labels":' + json_array(b"9" * 4000, 500) + b"}",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_no_body_is_slow_or_produces_a_long_response(body: bytes) -> None:
    before = time.process_time()
    with pytest.raises(InvalidRequest) as caught:
        parse(SampleRequest, body)
    assert time.process_time() - before < 2
    assert len(json.dumps(caught.value.to_json())) < 40_000


def test_commas_within_text_do_not_count_as_values() -> None:
    class Long(InferenceRequest):
        prompt: Annotated[str, Field(max_length=10**7)]

    text = 'a, \\ "b", \'\n' * MAX_VALUES
    assert parse(Long, json.dumps({"prompt": text}).encode()).prompt == text


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # speed has its own test
fields_of_any_value = st.dictionaries(st.sampled_from([*SampleRequest.model_fields, "x", ""]), anything, max_size=5)


@untimed
@given(st.binary(max_size=200) | fields_of_any_value.map(lambda fields: json.dumps(fields).encode()))
def test_any_bytes_become_a_request_or_invalid_request(body: bytes) -> None:
    for violation in violations_of(lambda: parse(SampleRequest, body)):
        assert violation.field
        assert violation.constraint
        assert violation.message
        json.dumps(violation.to_json(), allow_nan=False).encode()


def violations_of(check: Callable[[], object]) -> tuple[Violation, ...]:
    try:
        check()
    except InvalidRequest as error:
        return error.violations or (Violation("", "", "an error without a violation"),)
    return ()


@untimed
@given(fields_of_any_value)
def test_fields_from_python_get_the_same_violations(fields: dict[str, Any]) -> None:
    by_bytes = violations_of(lambda: parse(SampleRequest, json.dumps(fields).encode()))
    by_object = violations_of(lambda: parse_object(SampleRequest, fields))
    assert [(violation.field, violation.constraint) for violation in by_object] == [
        (violation.field, violation.constraint) for violation in by_bytes
    ]


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({1: 2}, "[1]"),
        ({"\ud800": 2}, "body"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": "a", "seed": 10**5000}, "seed"),
        ({"prompt": "a", "max_tokens": object()}, "max_tokens"),
        (3, "body"),
        (None, "body"),
    ],
)
def test_unusual_python_objects_are_invalid_requests(fields: Any, where: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_object(SampleRequest, fields)
    assert where in {violation.field for violation in caught.value.violations}
    json.dumps(caught.value.to_json()).encode()


def test_a_large_bound_of_a_number_is_written_in_full() -> None:
    class Bounded(InferenceRequest):
        value: Annotated[float, Field(ge=0, le=1_234_567)]

    with pytest.raises(InvalidRequest, match="value: must be at most 1234567"):
        parse(Bounded, b'{"value": 1e9}')
