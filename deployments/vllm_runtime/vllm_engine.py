"""Start and statistics of a vLLM engine, for every worker type that runs on vLLM."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from deployments.vllm_runtime.cpu_worker import use_all_cores, without_unfit_worker
from deployments.vllm_runtime.engine_options import check_names
from deployments.vllm_runtime.engine_socket import EngineSocket
from deployments.vllm_runtime.memory_needs import memory_needs
from deployments.vllm_runtime.platform_check import require_platform
from deployments.vllm_runtime.progress_loader import LOAD_FORMAT, load_format
from deployments.vllm_runtime.running_engine import RunningEngine
from deployments.vllm_runtime.socket_folder import make_socket_folder
from rbee_serve.errors import ConfigurationError, WorkerError
from rbee_serve.model_files.memory_check import require_memory
from rbee_serve.state import LoadProgress
from rbee_serve.worker.engine_failure import ERRORS, EngineFailure, engine_failure_in, one_line
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

_TOO_LITTLE_MEMORY = re.compile(
    r"KV cache is needed|No available memory|(?:Free|Available) memory on|GPU memory utilization|not enough GPU memory"
)
"""In vLLM's own exceptions about memory (`vllm/v1/core/kv_cache_utils.py`, `vllm/v1/worker`), which are those of a GPU
on a CPU too."""


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


def start_engine(context: LoadContext, options: dict[str, Any], statistics: EngineStatistics) -> RunningEngine:
    """A running `AsyncLLM` that keeps `statistics` and has reported its start to `context`.

    Blocks until it runs: 40 to 65 s on two CPU cores, nearly all of it imports.

    Raises `ConfigurationError` on a build of vLLM for another kind of device, an option that it does not know, or
    values that it refuses, `InsufficientVram` or `InsufficientResources` on a model that does not fit, `CudaError`
    where the accelerator fails, and `ConfigurationError` for whatever else ends the engine's processes; vLLM's words
    about it are in the message.
    """
    worker_id = context.worker.id
    context.wait_for_gpu()  # vLLM is imported and the files are here
    needs = memory_needs(Path(options["model"]), options)
    require_memory(context.device, needs, options.get("gpu_memory_utilization"))
    context.report(LoadProgress(stage="starting_engine"))
    os.environ[OWNER_PID] = str(os.getpid())
    socket_folder = make_socket_folder()
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
    except Exception as exc:
        # The operator wrote these options, so vLLM's own message is for them.
        lines = str(exc).strip().splitlines() or [type(exc).__name__]
        message = lines[-1][:MAX_MESSAGE_CHARACTERS]
        raise ConfigurationError(
            f"worker {worker_id}: vLLM refuses the engine options or the model: {message}"
        ) from exc
    engine_socket = EngineSocket(socket_folder)
    try:
        with engine_socket.loading(context.report):
            llm = AsyncLLM.from_vllm_config(
                vllm_config, usage_context=usage, stat_loggers=[lambda config, index: statistics]
            )
    except Exception as exc:
        words = engine_socket.failure() or one_line(exc)
        engine_socket.close()
        raise error_of_start(worker_id, context.device, words) from exc
    return RunningEngine(llm, engine_socket)


def error_of_start(worker_id: str, device: Device, words: str) -> WorkerError | ConfigurationError:
    """The error for the operator of an engine whose start has failed with these words of vLLM's."""
    failure = engine_failure_in(words)
    if _TOO_LITTLE_MEMORY.search(words):
        failure = EngineFailure.NO_VRAM if device.accelerator == "cuda" else EngineFailure.NO_RAM
    kind: type[WorkerError] | type[ConfigurationError] = ConfigurationError if failure is None else ERRORS[failure]
    return kind(f"worker {worker_id}: vLLM's engine could not start: {words}")
