"""What ends a vLLM engine, at its start and with a request on it, is known in the replica: on the CPU, in the places
that fail on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deployments.vllm_runtime.generation_engine import GenerationParams, load_engine
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import InsufficientResources, InsufficientVram
from rbee_serve.worker.spec import Device, LoadContext
from tests.vllm_runtime.tiny_llama import tiny_llama

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def context(**engine: Any) -> LoadContext:
    worker = WorkerConfig(id="llm-0", type="llm", engine={"max_model_len": 4096, **engine})
    return LoadContext(worker, Device("cpu"), lambda progress: None)


def test_a_kv_cache_that_is_too_small_is_an_error_with_vllm_s_numbers_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(InsufficientResources) as caught:
        load_engine(context(kv_cache_memory_bytes=1_000_000), tiny_llama(tmp_path))
    message = caught.value.message
    assert message.startswith("worker llm-0: vLLM's engine could not start: ValueError: To serve at least one request")
    assert "KV cache is needed" in message
    assert "decreasing `max_model_len`" in message


async def test_memory_that_runs_out_with_a_request_is_the_reason_of_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = "tests.vllm_runtime.failing_worker.FailingWorker"
    engine = load_engine(context(worker_cls=worker, kv_cache_memory_bytes=50_000_000), tiny_llama(tmp_path))
    try:
        with pytest.raises(InsufficientVram) as caught:
            async for _ in engine.generate(engine.input_of_tokens([1, 2, 3]), GenerationParams(max_tokens=4)):
                pass
        assert "private" not in caught.value.message
        assert not engine.alive
        assert engine.why_dead() == "its engine has ended: GPU memory ran out; see the worker's log"
        assert "CUDA out of memory. Tried to allocate 2.00 GiB. private" in caplog.text
    finally:
        engine.close()
