"""Starting and watching a vLLM engine: shared by every worker type that runs on vLLM."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
from pathlib import Path
from typing import Any

from deployments.vllm_runtime.cpu_worker import use_all_cores, worker_options
from deployments.vllm_runtime.progress_loader import LOAD_FORMAT, listening
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.memory_check import require_memory, weights_memory_bytes
from rbee_serve.state import LoadProgress
from rbee_serve.worker.spec import Device, LoadContext
from rbee_serve.worker.watchdog import Watchdog

logger = logging.getLogger(__name__)

GPU_SHARE = 0.9
"""The part of a whole GPU that vLLM takes by default (`gpu_memory_utilization`)."""

CPU_KV_CACHE_BYTES = 1024**3
"""The KV cache on a CPU unless `kv_cache_memory_bytes` says otherwise. vLLM would take half of the machine's memory."""

PICKLES = frozenset({"pt", "npcache"})
"""Values of vLLM's `load_format` that unpickle."""

OWNER_PID = "RBEE_SERVE_ENGINE_OWNER"
"""Environment variable by which the engine's processes know whose they are."""


def engine_options(context: LoadContext, model: Path) -> dict[str, Any]:
    """vLLM's engine arguments: what follows from the device, below what the configuration says by vLLM's names."""
    device = context.device
    options: dict[str, Any] = {
        "model": str(model),
        "served_model_name": context.worker.served_name,
        "trust_remote_code": False,
        "load_format": LOAD_FORMAT,
        "distributed_executor_backend": "mp" if len(device.indices) > 1 else "uni",
    }
    if device.accelerator == "cuda":
        # Ray hands out fractions of a GPU but does not enforce them.
        options["gpu_memory_utilization"] = round(GPU_SHARE * device.fraction, 4)
        options["tensor_parallel_size"] = len(device.indices)
    else:
        options["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
        options["enforce_eager"] = True
        options |= worker_options()
    check_engine(context.worker)
    chosen = engine_choices(context.worker)
    if chosen.get("load_format") == "auto":
        del chosen["load_format"]
    return options | chosen


def engine_choices(worker: WorkerConfig) -> dict[str, Any]:
    """What the configuration chooses of vLLM's options, by the names that vLLM has in Python."""
    return {name.replace("-", "_"): value for name, value in worker.engine.items()}


def check_engine(worker: WorkerConfig) -> None:
    """Raise `ConfigurationError` on options that would run what comes with a model."""
    chosen = engine_choices(worker)
    if chosen.get("trust_remote_code"):
        raise ConfigurationError("engine.trust_remote_code: is refused; a model is data, not code")
    if (load_format := chosen.get("load_format")) in PICKLES:
        raise ConfigurationError(f"engine.load_format: {load_format} reads pickles, which can run any code; use auto")


class EngineStatistics:
    """What the engine's scheduler says of itself with each step; the place that vLLM calls a stat logger."""

    def __init__(self, steps: Watchdog) -> None:
        self._steps = steps
        self.requests = 0
        """Requests that run or wait in the scheduler, at its last step."""

    def record(self, scheduler_stats: Any, *more: Any, **others: Any) -> None:
        """Called by vLLM for each message of the engine."""
        self._steps.step()
        if scheduler_stats is not None:
            self.requests = scheduler_stats.num_running_reqs + scheduler_stats.num_waiting_reqs

    def log_engine_initialized(self) -> None:
        """Called by vLLM once; nothing to do."""

    def log(self) -> None:
        """Called by vLLM now and then; nothing to do."""


def start_engine(context: LoadContext, options: dict[str, Any], statistics: EngineStatistics) -> Any:
    """A running `AsyncLLM`, which keeps `statistics` and has reported its start to `context`.

    Blocks for as long as that takes: 40 to 65 s on two CPU cores, nearly all of it imports.

    Raises `ConfigurationError` on an option that vLLM does not know, or values that it refuses, `InsufficientVram` or
    `InsufficientResources` on a model that does not fit.
    """
    worker_id = context.worker.id
    _require_room(context.device, options)
    context.report(LoadProgress(stage="starting_engine"))
    os.environ[OWNER_PID] = str(os.getpid())
    # vLLM would configure logging for itself in this process too, and report usage to its makers.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    use_all_cores(options)
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
    with listening(context.report):
        return async_llm.from_vllm_config(
            vllm_config, usage_context=usage, stat_loggers=[lambda config, index: statistics]
        )


def _require_room(device: Device, options: dict[str, Any]) -> None:
    needs = {"weights": weights_memory_bytes(Path(options["model"]), options.get("dtype"))}
    if cache := options.get("kv_cache_memory_bytes"):
        needs["KV cache"] = int(cache)
    require_memory(device, needs, options.get("gpu_memory_utilization", GPU_SHARE))
