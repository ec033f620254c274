"""Multimodal requests, and the configuration of a worker with helper workers. No engine."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from deployments.app import check
from deployments.multimodal.multimodal_request import MultimodalRequest
from rbee_serve.errors import ConfigurationError, InvalidRequest
from rbee_serve.ingress.upload import read_upload, typed
from rbee_serve.validation.parse import parse, parse_object

PNG = b"\x89PNG\r\n"
ENCODED = base64.b64encode(PNG).decode()


def parts(*content: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}]}


def violations(**fields: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        parse(MultimodalRequest, json.dumps(fields).encode())
    return {violation.field: violation.message for violation in caught.value.violations}


def test_a_message_is_a_text_or_parts_in_their_order() -> None:
    body = parts({"type": "image", "image": ENCODED}, {"type": "text", "text": "What is this?"})
    request = parse(MultimodalRequest, json.dumps(body).encode())
    [message] = request.chat
    assert [getattr(part, "image", None) or getattr(part, "text", None) for part in message.content] == [
        PNG, "What is this?",
    ]  # fmt: skip
    assert parse_object(MultimodalRequest, request.model_dump(exclude_unset=True)).chat == request.chat


def test_a_prompt_with_an_image_is_a_chat_of_one_message() -> None:
    request = parse_object(MultimodalRequest, {"prompt": "What is this?", "image": PNG})
    assert [part.type for part in request.chat[0].content if not isinstance(part, str)] == ["image", "text"]
    assert request.roles == frozenset()


def test_the_requested_modalities_are_the_roles_that_are_needed() -> None:
    request = parse_object(MultimodalRequest, {"prompt": "x", "modalities": ["text", "audio"]})
    assert request.roles == {"audio"}


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({}, "body", "exactly one"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "y"}]}, "body", "exactly one"),
        ({"prompt": "x", "image": "?"}, "image", "base64"),
        ({"messages": [{"role": "user", "content": "x"}], "image": ENCODED}, "image", "goes with prompt"),
        ({"prompt": "x", "modalities": ["audio"]}, "modalities", "must hold text"),
        ({"prompt": "x", "modalities": ["text", "text"]}, "modalities", "at most once"),
        ({"prompt": "x", "modalities": ["text", "video"]}, "modalities[1]", "must be one of text, audio, image"),
        ({"prompt": "x", "speech": {"speed": 1}}, "speech", "needs audio"),
        ({"prompt": "x", "modalities": ["text", "image"], "picture": {"steps": 0}}, "picture.steps", "at least 1"),
        (parts({"type": "video"}), "messages[0].content[0]", "must have one of text, image, audio as type"),
        (parts({"type": "image", "image": "?"}), "messages[0].content[0].image", "base64"),
        (parts({"type": "image", "image": ENCODED, "detail": "high"}), "messages[0].content[0].detail", "not a field"),
        (parts(), "messages[0].content", "must not be empty"),
        ({"messages": []}, "messages", "must not be empty"),
    ],
)  # fmt: skip
def test_every_violation_is_reported_by_its_path(fields: dict[str, Any], field: str, message: str) -> None:
    found = violations(**fields)
    assert message in found[field], found


def test_an_image_is_never_shown_in_an_error() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(MultimodalRequest, json.dumps(parts({"type": "image", "image": "SECRET!"})).encode())
    assert "SECRET" not in json.dumps(caught.value.to_json())


SPEECH = {"id": "speech-0", "type": "audio", "task": "generate"}
READER = {"id": "reader-0", "type": "echo"}


@pytest.mark.parametrize(
    ("worker", "message"),
    [
        ({"uses": {"audio": "speech-1"}}, r"workers\[1\].uses.audio: no worker has the id speech-1"),
        ({"uses": {"voice": "speech-0"}}, r"workers\[1\].uses.voice: a multimodal worker has no such role"),
        ({"uses": {"image": "speech-0"}}, r"workers\[1\].uses.image: speech-0 is not of the type vision/generate"),
        ({"type": "echo", "uses": {"audio": "speech-0"}}, "a echo worker has no such role; it has none"),
    ],
)
def test_a_helper_worker_must_exist_and_have_the_right_type(worker: dict[str, Any], message: str) -> None:
    multimodal = {"id": "multimodal-0", "type": "multimodal", "model_ref": "file:/m", **worker}
    with pytest.raises(ConfigurationError, match=message):
        check({"workers": [SPEECH, multimodal]}, "127.0.0.1")


async def test_a_form_may_hold_a_chat_as_json_with_its_images() -> None:
    chat = [{"role": "user", "content": [{"type": "image", "image": "QUJD"}, {"type": "text", "text": "What is it?"}]}]
    fields = {"messages": json.dumps(chat), "speech": '{"speed": 2}', "modalities": ["text", "audio"]}
    sent = httpx.Request("POST", "http://x/", files={"audio": ("", b"")}, data=fields)
    upload = read_upload(Request(scope_of(sent)), "multipart/form-data", sent.read())
    found = parse_object(MultimodalRequest, typed(upload, "multipart/form-data", MultimodalRequest))
    assert found == parse(MultimodalRequest, json.dumps({**fields, "messages": chat, "speech": {"speed": 2}}).encode())


def scope_of(request: httpx.Request) -> dict[str, Any]:
    headers = [(name.lower(), value) for name, value in request.headers.raw]
    return {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
