"""What of the LLM worker needs no engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.app import check
from deployments.llm.llm_worker import LlmRequest
from deployments.vllm_runtime.cpu_defaults import number_type, step_size
from deployments.vllm_runtime.mapping import fold_seed, split_text, stop_reason
from deployments.vllm_runtime.vllm_engine import engine_options
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError, InvalidRequest
from rbee_serve.events import StopReason
from rbee_serve.validation.parse import parse
from rbee_serve.worker.spec import Device, LoadContext


def context(device: Device, **settings: Any) -> LoadContext:
    worker = WorkerConfig(id="llm-0", type="llm", **settings)
    return LoadContext(worker, device, lambda progress: None)


def options(device: Device, **settings: Any) -> dict[str, Any]:
    return engine_options(context(device, **settings), Path("/models/m"))


@pytest.mark.parametrize(("seed", "folded"), [(0, 0), (2**63 - 1, 2**63 - 1), (2**63, 0), (2**64 - 1, 2**63 - 1)])
def test_a_seed_of_64_bits_fits_into_vllm_s_and_is_never_its_special_minus_one(seed: int, folded: int) -> None:
    assert fold_seed(seed) == folded


@pytest.mark.parametrize(
    ("finish", "matched", "told"),
    [
        ("stop", "END", (StopReason.STOP_SEQUENCE, "END")),
        ("stop", None, (StopReason.EOS, None)),
        ("stop", 2, (StopReason.EOS, None)),
        ("length", None, (StopReason.MAX_TOKENS, None)),
        ("abort", None, (StopReason.CANCELLED, None)),
        ("error", None, (StopReason.ERROR, None)),
    ],
)
def test_the_stop_reason_is_the_engine_s_in_the_protocol_s_words(finish: str, matched: Any, told: Any) -> None:
    assert stop_reason(finish, matched) == told


@given(st.text(max_size=40), st.lists(st.integers(0, 10), min_size=1, max_size=12))
def test_text_that_is_dealt_out_to_tokens_joins_to_itself(text: str, lengths: list[int]) -> None:
    pieces = split_text(text, lengths)
    assert len(pieces) == len(lengths)
    assert "".join(pieces) == text


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"prompt":"a","messages":[{"role":"user","content":"a"}]}',
        b'{"prompt":"a","max_tokens":1,"min_tokens":2}',
    ],
)
def test_rules_across_fields_are_told_as_such(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(LlmRequest, body)
    assert caught.value.violations[0].constraint == "rule"


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("max_tokens", 0), ("max_tokens", 2049), ("temperature", 2.1), ("temperature", -0.1), ("top_p", 0),
        ("top_p", 1.1), ("top_k", -1), ("min_p", 1.1), ("repetition_penalty", 0), ("repetition_penalty", 2.1),
        ("seed", 2**64), ("seed", -1), ("stop", ["a"] * 5), ("stop", [""]), ("stop", ["a" * 101]), ("prompt", ""),
        ("prompt", "a" * 32769),
    ],
)  # fmt: skip
def test_every_bound_of_the_wire_protocol_is_held(field: str, bad: Any) -> None:
    from rbee_serve.validation.parse import parse_object

    with pytest.raises(InvalidRequest) as caught:
        parse_object(LlmRequest, {"prompt": "a", field: bad})
    assert [violation.field.partition("[")[0] for violation in caught.value.violations] == [field]


def test_a_gpu_worker_takes_the_share_of_memory_that_it_was_given() -> None:
    found = options(Device("cuda", (3,), 0.5), gpus=0.5)
    assert (found["gpu_memory_utilization"], found["tensor_parallel_size"]) == (0.45, 1)


def test_several_gpus_make_a_tensor_parallel_engine_of_its_own_processes() -> None:
    found = options(Device("cuda", (0, 1)), gpus=2)
    assert (found["tensor_parallel_size"], found["distributed_executor_backend"]) == (2, "mp")


def test_engine_options_by_vllm_s_names_win_over_what_follows_from_the_device() -> None:
    given_options = {"enable-prefix-caching": True, "quantization": "awq", "kv_cache_memory_bytes": 5}
    found = options(Device("cpu"), engine=given_options)
    assert (found["enable_prefix_caching"], found["quantization"], found["kv_cache_memory_bytes"]) == (True, "awq", 5)
    assert found["enforce_eager"] is True


@pytest.mark.parametrize(
    ("device", "engine", "size"),
    [
        (Device("cpu"), {}, {"max_num_batched_tokens": 256}),
        (Device("cpu"), {"max-num-seqs": 1024}, {"max_num_batched_tokens": 1024}),
        (Device("cpu"), {"enable_chunked_prefill": False}, {}),
        (Device("cuda", (0,)), {}, {}),
    ],
)
def test_a_step_on_a_cpu_is_so_small_that_nobody_waits_long_for_it(
    device: Device, engine: dict[str, Any], size: dict[str, int]
) -> None:
    assert step_size(context(device, engine=engine)) == size


@pytest.mark.parametrize(
    ("vectors", "device", "chosen"),
    [
        ("AVX2", Device("cpu"), {"dtype": "float32"}),
        ("AVX512", Device("cpu"), {}),
        ("NEON", Device("cpu"), {}),
        ("AVX2", Device("cuda", (0,)), {}),
    ],
)
def test_a_processor_that_only_calculates_slowly_with_bfloat16_is_spared_it(
    monkeypatch: pytest.MonkeyPatch, vectors: str, device: Device, chosen: dict[str, str]
) -> None:
    monkeypatch.setattr("deployments.vllm_runtime.cpu_defaults._vectors", lambda: vectors)
    assert number_type(context(device)) == chosen


def test_remote_code_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="trust_remote_code"):
        options(Device("cpu"), engine={"trust_remote_code": True})


def test_metal_is_refused_before_anything_starts() -> None:
    worker = {"id": "llm-0", "type": "llm", "model_ref": "file:/m", "backend": "metal"}
    with pytest.raises(
        ConfigurationError, match=r"workers\[0\].backend: a llm worker cannot run on metal; it runs on cpu, cuda"
    ):
        check({"workers": [worker]}, "127.0.0.1")


def test_a_model_that_is_missing_or_is_text_is_told_before_anything_starts(tmp_path: Path) -> None:
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
    print(caught.value)
