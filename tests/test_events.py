"""The wire form of every event and error as literal JSON, which rbee's clients parse."""

from __future__ import annotations

import json
import pickle
from typing import Any

import msgspec
import pytest

import rbee_serve.errors as errors_module
from rbee_serve.errors import (
    InvalidRequest,
    RequestTooLong,
    Violation,
    WorkerError,
    WorkerLoading,
)
from rbee_serve.errors_json import error_from_code, error_from_json
from rbee_serve.events import (
    End,
    Error,
    Event,
    Metrics,
    Narration,
    Output,
    Progress,
    Started,
    StopReason,
    from_json,
    to_json,
)
from rbee_serve.outputs import ImageOutput, Label, LabelOutput, OutputValue, TokenOutput


class WeatherOutput(OutputValue, frozen=True, kw_only=True, tag="weather"):
    degrees: float
    i: int


WIRE: list[tuple[Event[Any], str]] = [
    (
        Started(job_id="job-1", model="smol", started_at="2026-01-02T03:04:05.678+00:00"),
        '{"type":"started","job_id":"job-1","model":"smol","started_at":"2026-01-02T03:04:05.678+00:00"}',
    ),
    (Output(TokenOutput(t="Hel", i=0)), '{"type":"token","t":"Hel","i":0}'),
    (Output(TokenOutput(t="", i=7)), '{"type":"token","t":"","i":7}'),
    (Output(TokenOutput(t='é\n"\u2028🐝', i=1)), '{"type":"token","t":"é\\n\\"\u2028🐝","i":1}'),
    (Output(WeatherOutput(degrees=-1.5, i=0)), '{"type":"weather","degrees":-1.5,"i":0}'),
    (
        Output(LabelOutput(labels=(Label(label="cat", score=0.75), Label(label="dog", score=0.25)), i=0)),
        '{"type":"labels","labels":[{"label":"cat","score":0.75},{"label":"dog","score":0.25}],"i":0}',
    ),
    (
        Output(ImageOutput(patch=b"\x89PNG", format="png", i=2)),
        '{"type":"image","patch":"iVBORw==","format":"png","i":2}',
    ),
    (
        Output(ImageOutput(patch=b"RIFF", format="webp", preview=True, step=5, i=0)),
        '{"type":"image","patch":"UklGRg==","format":"webp","preview":true,"step":5,"i":0}',
    ),
    (Progress(step=3, total=20), '{"type":"progress","step":3,"total":20}'),
    (Progress(step=3, total=20, kind="page"), '{"type":"progress","step":3,"total":20,"kind":"page"}'),
    (Metrics({"tokens_per_sec": 12.5, "vram_bytes": 7}), '{"type":"metrics","tokens_per_sec":12.5,"vram_bytes":7}'),
    (
        Narration(actor="worker", action="loads", target="smol", human="Loading"),
        '{"type":"narration","actor":"worker","action":"loads","target":"smol","human":"Loading"}',
    ),
    (
        Narration(actor="a", action="b", target="c", human="d", cute="e", story="f", correlation_id="g", job_id="h"),
        (
            '{"type":"narration","actor":"a","action":"b","target":"c","human":"d","cute":"e","story":"f",'
            '"correlation_id":"g","job_id":"h"}'
        ),
    ),
    (
        End(tokens_out=2, decode_time_ms=30, stop_reason=StopReason.MAX_TOKENS),
        '{"type":"end","tokens_out":2,"decode_time_ms":30,"stop_reason":"MAX_TOKENS"}',
    ),
    (
        End(
            tokens_out=0,
            decode_time_ms=0,
            stop_reason=StopReason.STOP_SEQUENCE,
            stop_sequence_matched="###",
            seed=2**64 - 1,
        ),
        (
            '{"type":"end","tokens_out":0,"decode_time_ms":0,"stop_reason":"STOP_SEQUENCE",'
            '"stop_sequence_matched":"###","seed":18446744073709551615}'
        ),
    ),
    (
        Error(code="WORKER_LOST", message="gone", retriable=True),
        '{"type":"error","code":"WORKER_LOST","message":"gone","retriable":true}',
    ),
]
every_event = pytest.mark.parametrize(("event", "wire"), WIRE)


@every_event
def test_an_event_encodes_to_this_json(event: Event[Any], wire: str) -> None:
    assert to_json(event) == wire.encode()


@every_event
def test_the_json_decodes_to_the_event(event: Event[Any], wire: str) -> None:
    assert from_json(wire, WeatherOutput, LabelOutput, ImageOutput) == event


@every_event
def test_an_event_survives_pickling(event: Event[Any], wire: str) -> None:
    assert pickle.loads(pickle.dumps(event)) == event


def test_labels_are_joined_in_order() -> None:
    likely, rare = Label(label="cat", score=0.75), Label(label="dog", score=0.25)
    assert LabelOutput.join([LabelOutput(labels=(likely, rare), i=0)]) == {
        "labels": [{"label": "cat", "score": 0.75}, {"label": "dog", "score": 0.25}]
    }
    assert LabelOutput.join([]) == {"labels": []}


def test_every_kind_of_event_has_an_example() -> None:
    kinds = {type(event) for event, _ in WIRE}
    assert kinds == {Started, Output, Progress, Metrics, Narration, End, Error}


def test_the_stop_reasons_are_those_of_the_protocol() -> None:
    assert [str(reason) for reason in StopReason] == [
        "MAX_TOKENS", "EOS", "STOP_SEQUENCE", "CANCELLED", "ERROR", "COMPLETE",
    ]  # fmt: skip


def test_a_number_that_json_cannot_represent_is_null() -> None:
    assert to_json(Metrics({"loss": float("nan")})) == b'{"type":"metrics","loss":null}'


def test_the_time_of_started_is_in_utc() -> None:
    assert Started.now("job-1", "m").started_at.endswith("+00:00")


def test_an_unknown_type_is_none_and_further_fields_are_skipped() -> None:
    assert from_json('{"type":"hologram","i":0}') is None
    assert from_json('{"type":"token","t":"a","i":0,"logprob":-1}') == Output(TokenOutput(t="a", i=0))


@pytest.mark.parametrize("data", ["", "[]", "3", "{", '{"type":"token"}', '{"type":"end","tokens_out":"2"}'])
def test_data_that_is_no_event_is_a_value_error(data: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - msgspec's errors are subclasses, and any of them will do
        from_json(data)


def family(base: type[WorkerError]) -> list[type[WorkerError]]:
    children = [child for child in base.__subclasses__() if child.__module__ == errors_module.__name__]
    return [error for child in children for error in (child, *family(child))]


ERRORS = {
    "CudaError": ("CUDA_ERROR", 500, True, None),
    "InvalidRequest": ("INVALID_REQUEST", 400, False, None),
    "RequestTooLong": ("INVALID_REQUEST", 400, False, None),
    "InferenceTimeout": ("INFERENCE_TIMEOUT", 408, True, None),
    "WorkerUnhealthy": ("WORKER_UNHEALTHY", 503, False, None),
    "InternalError": ("INTERNAL", 500, True, None),
    "InsufficientResources": ("INSUFFICIENT_RESOURCES", 503, True, 1),
    "WorkerStopping": ("INSUFFICIENT_RESOURCES", 503, True, 30),
    "InsufficientVram": ("INSUFFICIENT_VRAM", 503, True, 5),
    "WorkerLost": ("WORKER_LOST", 503, True, 5),
    "WorkerLoading": ("WORKER_LOADING", 503, True, 5),
    "WorkerNotFound": ("WORKER_NOT_FOUND", 404, False, None),
    "RouteNotFound": ("NOT_FOUND", 404, False, None),
    "MethodNotAllowed": ("METHOD_NOT_ALLOWED", 405, False, None),
    "PayloadTooLarge": ("PAYLOAD_TOO_LARGE", 413, False, None),
    "HeadersTooLarge": ("HEADERS_TOO_LARGE", 431, False, None),
    "HttpVersionNotSupported": ("INVALID_REQUEST", 505, False, None),
    "HeaderTimeout": ("HEADER_TIMEOUT", 408, True, None),
    "BodyTimeout": ("BODY_TIMEOUT", 408, True, None),
    "MisdirectedRequest": ("MISDIRECTED_REQUEST", 421, False, None),
    "OriginNotAllowed": ("ORIGIN_NOT_ALLOWED", 403, False, None),
    "RateLimited": ("RATE_LIMITED", 429, True, None),
    "UnsupportedMediaType": ("UNSUPPORTED_MEDIA_TYPE", 415, False, None),
}
every_error = pytest.mark.parametrize("error_type", family(WorkerError))


def test_codes_statuses_and_retriable_are_those_of_the_protocol() -> None:
    assert {
        error.__name__: (error.code, error.http_status, error.retriable, error.retry_after_s)
        for error in family(WorkerError)
    } == ERRORS


@every_error
def test_an_error_encodes_to_this_json(error_type: type[WorkerError]) -> None:
    code, _, retriable, _ = ERRORS[error_type.__name__]
    flag = "true" if retriable else "false"
    assert (
        msgspec.json.encode(error_type("why").to_json()).decode()
        == f'{{"code":"{code}","message":"why","retriable":{flag}}}'
    )
    assert (
        to_json(Error.from_exception(error_type("why"))).decode()
        == f'{{"type":"error","code":"{code}","message":"why","retriable":{flag}}}'
    )


@every_error
def test_an_error_survives_pickling_with_its_attributes(error_type: type[WorkerError]) -> None:
    error = error_type("why")
    error.progress_url = "/p"
    error.violations = (Violation("a", "<= 1", "must be at most 1", 2, has_value=True),)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is error_type
    assert (again.message, again.progress_url, again.violations) == ("why", "/p", error.violations)


@every_error
def test_an_error_is_found_by_its_code(error_type: type[WorkerError]) -> None:
    found = error_from_code(error_type.code, "why")
    assert issubclass(error_type, type(found))
    assert (found.code, found.message) == (error_type.code, "why")


def test_an_unknown_code_is_an_internal_error() -> None:
    assert type(error_from_code("NO_SUCH", "why")).__name__ == "InternalError"


def test_an_error_decodes_from_its_json_with_its_attributes() -> None:
    error = InvalidRequest.because([Violation("voice", "one of: a", "no such voice", "b", has_value=True)])
    error.progress_url = "/p"
    found = error_from_json(error.to_json())
    assert (type(found), found.message) == (InvalidRequest, error.message)
    assert (found.violations, found.progress_url) == (error.violations, "/p")
    assert error_from_json({"errors": [1, {}]}).violations == (Violation("", "", ""),)


def test_an_invalid_request_lists_every_violation() -> None:
    error = InvalidRequest.because(
        [Violation("a", "<= 1", "must be at most 1", 2, has_value=True), Violation("prompt", "required", "is required")]
    )
    assert json.dumps(error.to_json()) == (
        '{"code": "INVALID_REQUEST", "message": "a: must be at most 1; prompt: is required", "retriable": false, '
        '"errors": [{"field": "a", "constraint": "<= 1", "message": "must be at most 1", "value": 2}, '
        '{"field": "prompt", "constraint": "required", "message": "is required"}]}'
    )
    assert type(RequestTooLong.of_field("prompt", "tokens <= 5", "is too long")) is RequestTooLong


def test_a_value_of_null_is_shown_and_a_missing_value_is_not() -> None:
    assert Violation("a", "b", "c", None, has_value=True).to_json()["value"] is None
    assert "value" not in Violation("a", "b", "c").to_json()


def test_a_loading_error_has_the_url_of_its_progress() -> None:
    error = WorkerLoading("wait")
    error.progress_url = "/workers/llm/v1/loading/progress"
    assert error.to_json()["progress_url"] == "/workers/llm/v1/loading/progress"


def test_images_are_joined_without_their_previews() -> None:
    preview = ImageOutput(patch=b"p", format="png", preview=True, step=1, i=0)
    pictures = [ImageOutput(patch=b"a", format="png", i=1), ImageOutput(patch=b"b", format="png", i=3)]
    assert ImageOutput.join([preview, pictures[0], preview, pictures[1]]) == {"images": [b"a", b"b"], "format": "png"}
    assert ImageOutput.join([preview]) == {"images": []}
