"""vLLM's options: checks of `engine:`, values that follow from the device, defaults on a CPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.llm.llm_worker import defaults as llm_defaults
from deployments.multimodal.multimodal_worker import defaults as multimodal_defaults
from deployments.vllm_runtime.cpu_defaults import dtype_default, step_size_default
from deployments.vllm_runtime.engine_options import (
    LOAD_FORMATS,
    check_engine,
    check_names,
    engine_options,
    sequences_default,
    vllm_options,
    with_defaults,
)
from deployments.vllm_runtime.mapping import fold_seed, split_text
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.worker.spec import Device, LoadContext
from tests.gpus.fake_nvml import GIB, FakeGpu, FakeNvml


def context(device: Device, **settings: Any) -> LoadContext:
    worker = WorkerConfig(id="llm-0", type="llm", **settings)
    return LoadContext(worker, device, lambda progress: None)


def options(device: Device, **settings: Any) -> dict[str, Any]:
    return engine_options(context(device, **settings), Path("/models/m"))


@pytest.mark.parametrize(("seed", "folded"), [(0, 0), (2**63 - 1, 2**63 - 1), (2**63, 0), (2**64 - 1, 2**63 - 1)])
def test_a_64_bit_seed_fits_into_vllm_s_and_is_never_its_special_minus_one(seed: int, folded: int) -> None:
    assert fold_seed(seed) == folded


@given(st.text(max_size=40), st.lists(st.integers(0, 10), min_size=1, max_size=12))
def test_text_that_is_split_into_tokens_joins_to_itself(text: str, lengths: list[int]) -> None:
    pieces = split_text(text, lengths)
    assert len(pieces) == len(lengths)
    assert "".join(pieces) == text


def test_a_gpu_worker_gets_its_share_of_the_memory_without_the_cuda_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(FakeGpu(total=20 * GIB)))
    found = options(Device("cuda", ("0",), 0.5), gpus=0.5)
    assert (found["gpu_memory_utilization"], found["tensor_parallel_size"]) == (0.475, 1)
    assert options(Device("cuda", ("0",)), engine={"gpu_memory_utilization": 0.8})["gpu_memory_utilization"] == 0.8


@pytest.mark.parametrize(
    ("accelerator", "settings", "expected"),
    [
        ("cuda", {}, 64),
        ("cuda", {"max_ongoing_requests": 7}, 7),
        ("cuda", {"max_ongoing_requests": 5000}, 1024),
        ("cpu", {"max_ongoing_requests": 5000}, 128),
        ("cuda", {"max_ongoing_requests": 300, "engine": {"max-num-batched-tokens": 200}}, 200),
    ],
)
def test_vllm_reserves_for_the_requests_that_the_worker_runs_at_once(
    accelerator: str, settings: dict[str, Any], expected: int
) -> None:
    given = context(Device(accelerator, ("0",)), **settings)
    assert sequences_default(given, 64) == {"max_num_seqs": expected}


def test_a_default_yields_to_what_is_given_and_a_table_is_completed() -> None:
    defaults = {"max_num_seqs": 64, "mm_processor_cache_gb": 0, "limit_mm_per_prompt": {"video": 0}}
    assert with_defaults({"max_num_seqs": 8}, defaults) == {**defaults, "max_num_seqs": 8}
    images = with_defaults({"limit_mm_per_prompt": {"image": 4}}, defaults)["limit_mm_per_prompt"]
    assert images == {"video": 0, "image": 4}
    assert with_defaults({"limit_mm_per_prompt": {"video": 1}}, defaults)["limit_mm_per_prompt"] == {"video": 1}


def test_a_multimodal_worker_reserves_nothing_for_videos_which_no_request_has() -> None:
    found = multimodal_defaults(context(Device("cuda", ("0",)), max_ongoing_requests=16))
    assert (found["limit_mm_per_prompt"], found["max_num_seqs"]) == ({"video": 0}, 16)


def test_an_llm_worker_reserves_nothing_for_media_which_no_request_has() -> None:
    assert llm_defaults(context(Device("cuda", ("0",))))["language_model_only"] is True


def test_several_gpus_make_a_tensor_parallel_engine_with_its_own_processes() -> None:
    found = options(Device("cuda", ("GPU-a", "GPU-b")), gpus=2)
    assert (found["tensor_parallel_size"], found["distributed_executor_backend"]) == (2, "mp")


def test_engine_options_by_vllm_s_names_win_over_what_follows_from_the_device() -> None:
    given_options = {"enable-prefix-caching": True, "quantization": "awq", "kv_cache_memory_bytes": 5}
    found = options(Device("cpu"), engine=given_options)
    assert (found["enable_prefix_caching"], found["quantization"], found["kv_cache_memory_bytes"]) == (True, "awq", 5)
    assert found["enforce_eager"] is True


def test_adapters_are_no_option_of_vllm_and_auto_is_our_loader() -> None:
    engine = {"lora-modules": {"french": "/adapters/french"}, "load_format": "auto", "max_num_seqs": 8}
    found = options(Device("cpu"), engine=engine)
    assert "lora_modules" not in found
    assert (found["load_format"], found["max_num_seqs"]) == ("rbee_serve", 8)
    assert vllm_options(context(Device("cpu"), engine=engine).worker).lora_modules == {"french": "/adapters/french"}


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"trust_remote_code": True}, r"engine.trust_remote_code: is refused; a model is data, not code"),
        ({"trust-remote-code": True}, r"engine.trust_remote_code: is refused"),
        ({"load_format": "pt"}, r"engine.load_format: pt may read other files than safetensors; use one of auto, "),
        ({"load-format": "hf"}, r"engine.load_format: hf may read other files than safetensors"),
        ({"load_format": "ipc_cache"}, r"engine.load_format: ipc_cache may read other files"),
        ({"load_format": "of_a_plugin"}, r"engine.load_format: of_a_plugin may read other files"),
        ({"tokenizer_mode": "mistral"}, r"engine.tokenizer_mode: mistral is not a tokenizer of transformers"),
        ({"model": "other"}, r"engine.model: cannot be set here: it follows from model_ref; leave it out"),
        ({"tensor-parallel-size": 2}, r"engine.tensor_parallel_size: .* it follows from gpus"),
        ({"disable_log_stats": True}, r"engine.disable_log_stats: .* hang detection needs the engine's statistics"),
        ({"max_num_seqs": 0}, r"engine.max_num_seqs: must be at least 1, not 0"),
        ({"lora_modules": ["a"]}, r"engine.lora_modules: must be a mapping"),
    ],
)
def test_refused_options_are_reported_before_anything_starts(engine: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_engine(context(Device("cpu"), engine=engine).worker)


@pytest.mark.parametrize("load_format", LOAD_FORMATS)
def test_every_load_format_that_reads_safetensors_only_is_accepted(load_format: str) -> None:
    worker = context(Device("cpu"), engine={"load_format": load_format}).worker
    check_engine(worker)
    assert vllm_options(worker).for_vllm().get("load_format", "auto") == load_format


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM's source files")
def test_vllm_knows_every_load_format_that_is_accepted() -> None:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0], "model_executor", "model_loader", "__init__.py").read_text()
    known = source.partition("LoadFormats = Literal[")[2].partition("]")[0]
    assert [load_format for load_format in LOAD_FORMATS if f'"{load_format}"' not in known] == []


@pytest.mark.parametrize(
    ("given_mode", "mode"), [({}, "hf"), ({"tokenizer_mode": "auto"}, "hf"), ({"tokenizer_mode": "slow"}, "slow")]
)
def test_mistral_s_layout_gets_the_tokenizer_of_transformers(
    tmp_path: Path, given_mode: dict[str, str], mode: str
) -> None:
    (tmp_path / "model.safetensors").touch()
    assert "tokenizer_mode" not in engine_options(context(Device("cpu")), tmp_path)
    (tmp_path / "consolidated.safetensors").touch()
    assert engine_options(context(Device("cpu"), engine=given_mode), tmp_path)["tokenizer_mode"] == mode


@pytest.mark.vllm  # only imported, which takes as long as a model
def test_every_unknown_name_is_reported_with_the_nearest_one_of_vllm() -> None:
    check_names(options(Device("cuda"), engine={"max_model_len": 5}), "llm-0")
    with pytest.raises(ConfigurationError) as caught:
        check_names({"max_model_length": 1, "model": "m", "qqqqqq": 2}, "llm-0")
    assert str(caught.value) == (
        "worker llm-0: vLLM has no engine option 'max_model_length' (did you mean max_model_len?), 'qqqqqq'"
    )


@pytest.mark.parametrize(
    ("device", "engine", "size"),
    [
        (Device("cpu"), {}, {"max_num_batched_tokens": 256}),
        (Device("cpu"), {"max-num-seqs": 1024}, {"max_num_batched_tokens": 1024}),
        (Device("cpu"), {"enable_chunked_prefill": False}, {}),
        (Device("cuda"), {}, {}),
    ],
)
def test_a_step_on_a_cpu_reads_few_prompt_tokens(device: Device, engine: dict[str, Any], size: dict[str, int]) -> None:
    assert step_size_default(context(device, engine=engine)) == size


@pytest.mark.parametrize(
    ("vectors", "device", "chosen"),
    [
        ("AVX2", Device("cpu"), {"dtype": "float32"}),
        ("AVX512", Device("cpu"), {}),
        ("NEON", Device("cpu"), {}),
        ("AVX2", Device("cuda"), {}),
    ],
)
def test_a_cpu_with_slow_bfloat16_uses_float32(
    monkeypatch: pytest.MonkeyPatch, vectors: str, device: Device, chosen: dict[str, str]
) -> None:
    monkeypatch.setattr("deployments.vllm_runtime.cpu_defaults._vector_extension", lambda: vectors)
    assert dtype_default(context(device)) == chosen
