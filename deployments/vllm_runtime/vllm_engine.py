"""Start and statistics of a vLLM engine, for every worker type that runs on vLLM."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from deployments.vllm_runtime.cpu_worker import use_all_cores, without_unfit_worker
from deployments.vllm_runtime.engine_options import GPU_SHARE, check_names
from deployments.vllm_runtime.platform_check import require_platform
from deployments.vllm_runtime.progress_loader import LOAD_FORMAT, load_format, progress_socket
from deployments.vllm_runtime.socket_folder import make_socket_folder
from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.memory_check import require_memory, weights_memory_bytes
from rbee_serve.state import LoadProgress
from rbee_serve.worker.spec import Device, LoadContext
from rbee_serve.worker.watchdog import Watchdog

OWNER_PID = "RBEE_SERVE_ENGINE_OWNER"
"""Environment variable with the replica's process id, inherited by the engine's processes."""

ENVIRONMENT = {
    # vLLM would report usage to its authors.
    "VLLM_NO_USAGE_STATS": "1",
    # FlashInfer compiles its sampler at the first request that has top_p or top_k. Without a CUDA toolkit that ends the
    # engine (https://github.com/vllm-project/vllm/issues/49497), and with one it takes minutes.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
"""vLLM's settings where the environment has no others."""

MAX_MESSAGE_CHARACTERS = 300
"""Characters of vLLM's own message in an error."""


class EngineStatistics:
    """The scheduler's statistics after each step; in vLLM's terms a stat logger."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self.requests = 0
        """Requests that run or wait in the scheduler, at its last step."""

    def record(self, scheduler_stats: Any, *args: Any, **kwargs: Any) -> None:
        """Called by vLLM for each message of the engine core."""
        self._watchdog.step()
        if scheduler_stats is not None:
            self.requests = scheduler_stats.num_running_reqs + scheduler_stats.num_waiting_reqs

    def log_engine_initialized(self) -> None:
        """Called by vLLM once; nothing to do."""

    def log(self) -> None:
        """Called by vLLM periodically; nothing to do."""


def start_engine(context: LoadContext, options: dict[str, Any], statistics: EngineStatistics) -> Any:
    """A running `AsyncLLM` that keeps `statistics` and has reported its start to `context`.

    Blocks until it runs: 40 to 65 s on two CPU cores, nearly all of it imports.

    Raises `ConfigurationError` on a build of vLLM for another kind of device, an option that it does not know, or
    values that it refuses, `InsufficientVram` or `InsufficientResources` on a model that does not fit.
    """
    worker_id = context.worker.id
    _require_memory(context.device, options)
    context.report(LoadProgress(stage="starting_engine"))
    os.environ[OWNER_PID] = str(os.getpid())
    make_socket_folder()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    require_platform(worker_id, context.device.accelerator)
    check_names(options, worker_id)
    options = without_unfit_worker(options)
    if options["load_format"] == LOAD_FORMAT:
        options = {**options, "load_format": load_format(Path(options["model"]))}
    use_all_cores(options)
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    usage = UsageContext.OPENAI_API_SERVER
    try:
        vllm_config = AsyncEngineArgs(**options).create_engine_config(usage)
    except (ValueError, TypeError) as exc:
        # The operator wrote these options, so vLLM's own message is for them.
        lines = str(exc).strip().splitlines() or [type(exc).__name__]
        message = lines[-1][:MAX_MESSAGE_CHARACTERS]
        raise ConfigurationError(
            f"worker {worker_id}: vLLM refuses the engine options or the model: {message}"
        ) from exc
    with progress_socket(context.report):
        return AsyncLLM.from_vllm_config(
            vllm_config, usage_context=usage, stat_loggers=[lambda config, index: statistics]
        )


def _require_memory(device: Device, options: dict[str, Any]) -> None:
    needs = {"weights": weights_memory_bytes(Path(options["model"]), options.get("dtype"))}
    if cache := options.get("kv_cache_memory_bytes"):
        needs["KV cache"] = int(cache)
    require_memory(device, needs, options.get("gpu_memory_utilization", GPU_SHARE))
