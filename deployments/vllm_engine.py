"""Starting and watching a vLLM engine: shared by every worker type that runs on vLLM."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rbee_serve.errors import ConfigurationError
from rbee_serve.replica.memory import MemoryGauge, cuda_tree_bytes, process_tree_bytes
from rbee_serve.worker import Device, LoadContext

logger = logging.getLogger(__name__)

GPU_SHARE = 0.9
"""The part of a whole GPU that vLLM takes by default (`gpu_memory_utilization`)."""

CPU_KV_CACHE_BYTES = 1024**3
"""The KV cache on a CPU unless `kv_cache_memory_bytes` says otherwise. vLLM would take half of the machine's memory."""

OWNER_PID = "RBEE_SERVE_ENGINE_OWNER"
"""Environment variable by which the engine's processes know whose they are."""


def engine_options(context: LoadContext, model: Path) -> dict[str, Any]:
    """vLLM's engine arguments: what follows from the device, below what the configuration says by vLLM's names."""
    device = context.device
    options: dict[str, Any] = {
        "model": str(model),
        "served_model_name": context.worker.served_name,
        "trust_remote_code": False,
        "distributed_executor_backend": "mp" if len(device.indices) > 1 else "uni",
    }
    if device.backend == "cuda":
        # Ray hands out fractions of a GPU but does not enforce them.
        options["gpu_memory_utilization"] = round(GPU_SHARE * device.fraction, 4)
        options["tensor_parallel_size"] = len(device.indices)
    else:
        options["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
        options["enforce_eager"] = True
    chosen = {name.replace("-", "_"): value for name, value in context.worker.engine.items()}
    if chosen.get("trust_remote_code"):
        raise ConfigurationError(f"worker {context.worker.id}: engine.trust_remote_code is refused: a model is data")
    return options | chosen


class EngineSteps:
    """Whether the engine gets on, by the statistics that its scheduler sends with each step.

    One that has work and makes no step for `longest_s` seconds hangs, until it makes one. vLLM's own `check_health`
    sees only an engine that has raised.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._last = time.monotonic()
        self._requests = 0
        self._hangs = False

    @contextmanager
    def expected(self) -> Iterator[None]:
        """While the block runs there is a request, so steps are to be expected."""
        if self._requests == 0:
            self._last = time.monotonic()
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    def record(self, *statistics: Any, **more: Any) -> None:
        """Called by vLLM for each message of the engine."""
        self._last = time.monotonic()
        self._hangs = False

    def log_engine_initialized(self) -> None:
        """Called by vLLM once; nothing to do."""

    def log(self) -> None:
        """Called by vLLM now and then; nothing to do."""

    def hangs(self) -> bool:
        """Whether the engine hangs. That stays true when its requests have been given up."""
        if self._requests and time.monotonic() - self._last > self._longest_s:
            self._hangs = True
        return self._hangs


def start_engine(worker_id: str, options: dict[str, Any], steps: EngineSteps) -> Any:
    """A running `AsyncLLM`, whose steps are noted in `steps`.

    Blocks for as long as that takes: 40 to 65 s on two CPU cores, nearly all of it imports.

    Raises `ConfigurationError` on an option that vLLM does not know, or values that it refuses.
    """
    os.environ[OWNER_PID] = str(os.getpid())
    # vLLM would configure logging for itself in this process too, and report usage to its makers.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    engine_args = importlib.import_module("vllm.engine.arg_utils").AsyncEngineArgs
    known = set(engine_args.__dataclass_fields__)
    if unknown := sorted(set(options) - known):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigurationError(f"worker {worker_id}: vLLM has no engine option {unknown[0]!r}{hint}")
    async_llm = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM
    usage = importlib.import_module("vllm.usage.usage_lib").UsageContext.OPENAI_API_SERVER
    try:
        vllm_config = engine_args(**options).create_engine_config(usage)
    except (ValueError, TypeError) as exc:
        # The operator wrote these options and reads this sentence: vLLM's own words are for them.
        words = str(exc).strip().splitlines()[-1][:300] if str(exc).strip() else type(exc).__name__
        raise ConfigurationError(f"worker {worker_id}: vLLM refuses the engine options or the model: {words}") from exc
    return async_llm.from_vllm_config(vllm_config, usage_context=usage, stat_loggers=[lambda config, index: steps])


def memory_gauge(device: Device) -> MemoryGauge:
    """Bytes that the engine's processes hold: on the device where the driver tells, else in RAM."""
    if device.backend == "cuda":
        return MemoryGauge(lambda: cuda_tree_bytes(device.indices))
    return MemoryGauge(process_tree_bytes)
