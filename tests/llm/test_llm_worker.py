"""The LLM worker's request, defaults and checks, without an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.app import check
from deployments.llm.generation_backend import stop_reason
from deployments.llm.generation_request import ChatMessage
from deployments.llm.llm_worker import SPEC, LlmBackend, LlmRequest
from deployments.vllm_runtime.generation_engine import EngineInput, Finish, GenerationParams
from rbee_serve.errors import ConfigurationError, InvalidRequest, RequestTooLong
from rbee_serve.events import End, Event, Metrics, Narration, Output, StopReason
from rbee_serve.validation.parse import parse, parse_object
from rbee_serve.worker.memory import MemoryGauge


@pytest.mark.parametrize(
    ("finish", "match", "expected"),
    [
        ("stop", "END", (StopReason.STOP_SEQUENCE, "END")),
        ("stop", None, (StopReason.EOS, None)),
        ("stop", 2, (StopReason.EOS, None)),
        ("length", None, (StopReason.MAX_TOKENS, None)),
        ("abort", None, (StopReason.CANCELLED, None)),
        ("error", None, (StopReason.ERROR, None)),
        (None, None, (StopReason.ERROR, None)),
    ],
)
def test_the_stop_reason_is_the_engine_s_in_the_protocol_s_terms(finish: Any, match: Any, expected: Any) -> None:
    assert stop_reason(Finish(finish, match)) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"prompt":"a","messages":[{"role":"user","content":"a"}]}',
        b'{"prompt":"a","max_tokens":1,"min_tokens":2}',
    ],
)
def test_rules_across_fields_are_reported_as_rules(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(LlmRequest, body)
    assert caught.value.violations[0].constraint == "rule"


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("max_tokens", 0), ("max_tokens", 2049), ("temperature", 2.1), ("temperature", -0.1), ("top_p", 0),
        ("top_p", 1.1), ("top_k", -1), ("min_p", 1.1), ("repetition_penalty", 0), ("repetition_penalty", 2.1),
        ("seed", 2**64), ("seed", -2), ("stop", ["a"] * 5), ("stop", [""]), ("stop", ["a" * 101]), ("prompt", ""),
        ("prompt", "a" * 32769),
    ],
)  # fmt: skip
def test_every_bound_of_the_wire_protocol_is_enforced(field: str, bad: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_object(LlmRequest, {"prompt": "a", field: bad})
    assert [violation.field.partition("[")[0] for violation in caught.value.violations] == [field]


@pytest.mark.parametrize("content", ["a" * 32769, [{"type": "text", "text": "a"}]])
def test_a_message_is_a_bounded_text_and_never_shown(content: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_object(LlmRequest, {"messages": [{"role": "user", "content": content}]})
    assert caught.value.violations[0].field == "messages[0].content"
    shown = repr(LlmRequest(messages=[ChatMessage[str](role="user", content="SECRET")]).messages)
    assert "SECRET" not in shown


class Engine:
    """An engine whose tokens are given."""

    context_tokens = 20
    loras = ("french",)
    requests = 0
    alive = True

    def __init__(self, *steps: list[str] | Finish) -> None:
        self.steps = steps
        self.params: GenerationParams | None = None
        self.closed = False
        self.tokenizer: Any = SimpleNamespace(encode=lambda text: text.split())

    def input_of_tokens(self, tokens: list[int]) -> EngineInput:
        return {"prompt_token_ids": tokens}

    async def generate(self, engine_input: EngineInput, params: GenerationParams) -> AsyncGenerator[list[str] | Finish]:
        self.params = params
        try:
            for step in self.steps:
                yield step
        finally:
            self.closed = True


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> LlmBackend:
    monkeypatch.setattr("deployments.llm.llm_worker.ChatTokenizer", lambda tokenizer: None)
    engine: Any = Engine(["He"], ["l", "lo"], [""], Finish("stop", "!"))
    return LlmBackend(engine, MemoryGauge(lambda: 7))


async def test_tokens_become_events_and_the_last_two_are_metrics_and_end(backend: LlmBackend) -> None:
    await asyncio.to_thread(backend.memory_bytes)  # as after a load: in the event loop a gauge does not wait
    request = LlmRequest(prompt="a b c", max_tokens=9, temperature=0.5, seed=3, stop=["!"], lora="french")
    events: list[Event[Any]] = [event async for event in backend.execute(request)]
    outputs = [event.value for event in events if isinstance(event, Output)]
    assert [(value.i, value.t) for value in outputs] == [(0, "He"), (1, "l"), (2, "lo"), (3, "")]
    assert [event.action for event in events if isinstance(event, Narration)] == ["prefill", "complete"]
    metrics, end = events[-2:]
    assert isinstance(metrics, Metrics)
    assert set(metrics.values) == {
        "tokens_per_sec", "vram_bytes", "time_to_first_token_ms", "tokens_in", "tokens_out",
    }  # fmt: skip
    assert (metrics.values["tokens_in"], metrics.values["tokens_out"], metrics.values["vram_bytes"]) == (3, 4, 7)
    assert isinstance(end, End)
    assert (end.tokens_out, end.stop_reason, end.stop_sequence_matched, end.seed) == (4, "STOP_SEQUENCE", "!", 3)
    params = backend._engine.__dict__["params"]
    assert params == GenerationParams(max_tokens=9, sampling={"temperature": 0.5}, stop=["!"], seed=3, lora="french")


async def test_closing_the_stream_closes_the_generation(backend: LlmBackend) -> None:
    events = backend.execute(LlmRequest(prompt="a", max_tokens=9))
    while not isinstance(await anext(events), Output):
        pass
    await events.aclose()
    assert backend._engine.__dict__["closed"]


@pytest.mark.parametrize(
    ("fields", "error", "field"),
    [
        ({"prompt": "a b c", "max_tokens": 18}, RequestTooLong, "prompt"),
        ({"prompt": "   ", "max_tokens": 1}, InvalidRequest, "prompt"),
        ({"prompt": "a", "max_tokens": 1, "lora": "german"}, InvalidRequest, "lora"),
    ],
)
async def test_a_request_that_the_engine_cannot_take_is_refused_before_any_event(
    backend: LlmBackend, fields: dict[str, Any], error: type[InvalidRequest], field: str
) -> None:
    with pytest.raises(error) as caught:
        await anext(backend.execute(LlmRequest(**fields)))
    assert [violation.field for violation in caught.value.violations] == [field]
    assert backend._engine.__dict__["params"] is None


def test_the_long_request_is_valid_and_ignores_the_end_token() -> None:
    assert SPEC.long_request is not None
    request = SPEC.long_request()
    assert (request.max_tokens, request.ignore_eos) == (1024, True)


def test_metal_is_refused_before_anything_starts() -> None:
    worker = {"id": "llm-0", "type": "llm", "model_ref": "file:/m", "backend": "metal"}
    with pytest.raises(
        ConfigurationError, match=r"workers\[0\].backend: a llm worker cannot run on metal; it runs on cpu, cuda"
    ):
        check({"workers": [worker]}, "127.0.0.1")


def test_a_missing_model_and_a_text_file_are_reported_before_anything_starts(tmp_path: Path) -> None:
    text = tmp_path / "model.gguf"
    text.write_text("this is a text")
    workers = [
        {"id": "a", "type": "llm", "model_ref": f"file:{tmp_path}/nothing"},
        {"id": "b", "type": "llm", "model_ref": f"file:{text}"},
    ]
    with pytest.raises(ConfigurationError) as caught:
        check({"workers": workers}, "127.0.0.1")
    missing, wrong = str(caught.value).splitlines()
    assert missing.startswith("workers[0].model_ref: ")
    assert wrong.startswith("workers[1].model_ref: ")
