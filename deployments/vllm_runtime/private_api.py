"""Every name of vLLM in use here that `vllm.__all__` does not export, and the probe that looks for them.

Any release of vLLM may change these names. A feature with a fallback is used only where the installed vLLM fits it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

MIN_VERSION, END_VERSION = (0, 32), (0, 34)
"""The releases that were tried, `END_VERSION` not included; the same as in pyproject.toml."""

_MISSING = object()


class PrivateName(NamedTuple):
    """`path` is an attribute of the module, or `Class.member`, where the member may also be a field or an attribute
    that `__init__` sets. `parameters` are the names of the first parameters, without `self`."""

    module: str
    path: str
    purpose: str
    parameters: tuple[str, ...] = ()


_ASYNC_LLM = "vllm.v1.engine.async_llm"
_DETOKENIZER = "vllm.v1.engine.detokenizer"
_LOADER = "vllm.model_executor.model_loader"
_SHM = "vllm.distributed.device_communicators.shm_broadcast"
_PROCESSOR = "vllm.multimodal.processing.processor"
_RENDERER = "vllm.renderers.base"

ENGINE = (
    PrivateName(_ASYNC_LLM, "AsyncLLM.from_vllm_config", "start", ("vllm_config",)),
    PrivateName(_ASYNC_LLM, "AsyncLLM.generate", "text", ("prompt", "sampling_params", "request_id")),
    PrivateName(_ASYNC_LLM, "AsyncLLM.encode", "vectors", ("prompt", "pooling_params", "request_id")),
    PrivateName(_ASYNC_LLM, "AsyncLLM.get_tokenizer", "tokens of a prompt"),
    PrivateName(_ASYNC_LLM, "AsyncLLM.model_config", "context length and sampling defaults"),
    PrivateName(_ASYNC_LLM, "AsyncLLM.renderer", "engine input of media"),
    PrivateName(_ASYNC_LLM, "AsyncLLM.errored", "health"),
    PrivateName(_ASYNC_LLM, "AsyncLLM.shutdown", "end of the engine's processes"),
    PrivateName("vllm.config", "ModelConfig.get_diff_sampling_param", "the model's sampling defaults"),
    PrivateName("vllm.config", "ModelConfig.max_model_len", "context length"),
    PrivateName("vllm.usage.usage_lib", "UsageContext.OPENAI_API_SERVER", "defaults of a server"),
    PrivateName("vllm.v1.engine.exceptions", "EngineDeadError", "an engine process that ended"),
    PrivateName("vllm.v1.metrics.stats", "SchedulerStats.num_running_reqs", "requests in the engine"),
    PrivateName("vllm.v1.metrics.stats", "SchedulerStats.num_waiting_reqs", "requests in the engine"),
    PrivateName("vllm.inputs.engine", "tokens_input", "engine input of tokens", ("prompt_token_ids",)),
    PrivateName("vllm.sampling_params", "RequestOutputKind.DELTA", "new tokens only in each output"),
    PrivateName("vllm.pooling_params", "PoolingParams", "vectors"),
    PrivateName("vllm.lora.request", "LoRARequest", "adapters", ("lora_name", "lora_int_id", "lora_path")),
    PrivateName("vllm.envs", "VLLM_NO_USAGE_STATS", "no usage reports"),
)
"""Needed by every engine; there is no fallback."""

MEDIA = (
    PrivateName(_RENDERER, "BaseRenderer.get_mm_processor", "the model's processor"),
    PrivateName(_RENDERER, "BaseRenderer.render_cmpl", "engine input of media", ("prompts",)),
    PrivateName(_RENDERER, "BaseRenderer.render_cmpl_async", "engine input of media", ("prompts",)),
    PrivateName("vllm.multimodal.processing.context", "BaseProcessingInfo.allowed_mm_limits", "media per request"),
    PrivateName("vllm.exceptions", "VLLMClientError", "media that the processor refuses"),
    PrivateName(_PROCESSOR, "BaseMultiModalProcessor.info", "media per request"),
    PrivateName(_PROCESSOR, "BaseMultiModalProcessor._validate_mm_kwargs", "raises the count error"),
    PrivateName(_PROCESSOR, "BaseMultiModalProcessor._validate_mm_updates", "raises the count error"),
    PrivateName(_PROCESSOR, "BaseMultiModalProcessor._validate_mm_placeholders", "raises the count error"),
)
"""Needed by the multimodal worker; there is no fallback."""


class Feature(NamedTuple):
    """A change of vLLM that can be left out. `fallback` is what happens then."""

    title: str
    names: tuple[PrivateName, ...]
    fallback: str


PROGRESS_LOADER = Feature(
    "progress of loading weights",
    (
        PrivateName(_LOADER, "register_model_loader", "makes our loader known", ("load_format",)),
        PrivateName(_LOADER, "DefaultModelLoader.__init__", "base class", ("load_config",)),
        PrivateName(_LOADER, "DefaultModelLoader.download_model", "base class", ("model_config",)),
        PrivateName(_LOADER, "DefaultModelLoader.get_all_weights", "base class", ("model_config", "model")),
        PrivateName("vllm.config.utils", "replace", "a copy of the load configuration"),
        PrivateName("vllm.distributed.parallel_state", "get_world_group", "the process that reports"),
        PrivateName("vllm.distributed.parallel_state", "GroupCoordinator.rank", "the process that reports"),
    ),
    "weights are loaded without progress",
)
SHM_WAKEUP = Feature(
    "sleeping wait for messages between vLLM's processes on a CPU",
    (
        PrivateName(_SHM, "SpinCondition.__init__", "base class, replaced", ("is_reader", "context", "notify_address")),
        PrivateName(_SHM, "SpinCondition.is_reader", "the end of the queue"),
        PrivateName(_SHM, "SpinCondition.record_read", "a message was read"),
        PrivateName(_SHM, "SpinCondition.wait", "the reader waits", ("timeout_ms",)),
        PrivateName(_SHM, "SpinCondition.notify", "the writer wakes readers"),
        PrivateName(_SHM, "SpinCondition.cancel", "a reader is woken for shutdown"),
        PrivateName("vllm.platforms", "current_platform", "whether this is a CPU"),
        PrivateName("vllm.platforms.interface", "Platform.is_cpu", "whether this is a CPU"),
    ),
    "its processes poll as in vLLM",
)
CPU_WORKER = Feature(
    "one thread for small steps on a CPU",
    (
        PrivateName("vllm.v1.worker.cpu_worker", "CPUWorker", "base class"),
        PrivateName("vllm.v1.worker.cpu_worker", "CPUWorker.execute_model", "a step", ("scheduler_output",)),
        PrivateName("vllm.v1.worker.cpu_worker", "CPUWorker.get_model", "the number of parameters"),
        PrivateName("vllm.v1.core.sched.output", "SchedulerOutput.total_num_scheduled_tokens", "tokens of a step"),
        PrivateName("vllm.envs", "VLLM_CPU_NUM_OF_RESERVED_CPU", "cores that the model may not use"),
    ),
    "steps use vLLM's own worker and threads",
)
TEXT_SEARCH = Feature(
    "switching off vLLM's search for media placeholders in text",
    (
        PrivateName(
            _PROCESSOR, "BaseMultiModalProcessor._apply_prompt_updates_via_text", "replaced",
            ("token_ids", "mm_prompt_updates"),
        ),
        PrivateName(_PROCESSOR, "BaseMultiModalProcessor._apply_prompt_updates", "calls it"),
    ),
    "requests with media and control tokens in their texts are refused",
)  # fmt: skip
STOP_HOLD_BACK = Feature(
    "streaming of text that begins no stop sequence",
    (
        PrivateName(_DETOKENIZER, "BaseIncrementalDetokenizer.get_next_output_text", "replaced", ("finished", "delta")),
        PrivateName(_DETOKENIZER, "BaseIncrementalDetokenizer.stop_buffer_length", "what is kept back"),
        PrivateName(_DETOKENIZER, "BaseIncrementalDetokenizer.output_text", "the text so far"),
        PrivateName(_DETOKENIZER, "BaseIncrementalDetokenizer.stop", "the stop sequences"),
        PrivateName(_DETOKENIZER, "BaseIncrementalDetokenizer.include_stop_str_in_output", "nothing is kept back"),
    ),
    "as many characters are kept back as the longest stop sequence has, less one",
)

FEATURES = (PROGRESS_LOADER, SHM_WAKEUP, CPU_WORKER, TEXT_SEARCH, STOP_HOLD_BACK)
ALL_NAMES = (*ENGINE, *MEDIA, *(name for feature in FEATURES for name in feature.names))


@functools.cache
def fits(feature: Feature) -> bool:
    """Whether the installed vLLM has what `feature` needs. If not, one warning is logged in this process."""
    reason = _version_fault() or next(filter(None, map(fault, feature.names)), None)
    if reason is None:
        return True
    logger.warning("vLLM: no %s, because %s; %s", feature.title, reason, feature.fallback)
    return False


def fault(name: PrivateName) -> str | None:
    """Why the installed vLLM does not have this name as expected; None if it does."""
    full_name = f"{name.module}.{name.path}"
    try:
        found: Any = importlib.import_module(name.module)
    except Exception as exc:  # importing another release's module may raise anything
        return f"{name.module} cannot be imported ({type(exc).__name__})"
    for part in name.path.split("."):
        owner, found = found, getattr(found, part, _MISSING)
        if found is _MISSING and not (isinstance(owner, type) and _is_instance_attribute(owner, part)):
            return f"there is no {full_name}"
    if name.parameters and _parameters(found)[: len(name.parameters)] != name.parameters:
        return f"{full_name} does not take {', '.join(name.parameters)}"
    return None


def _version_fault() -> str | None:
    version = getattr(importlib.import_module("vllm"), "__version_tuple__", ())
    if MIN_VERSION <= tuple(version[:2]) < END_VERSION:
        return None
    tried = f"{'.'.join(map(str, MIN_VERSION))} up to, not including, {'.'.join(map(str, END_VERSION))}"
    return f"its version is {'.'.join(map(str, version)) or 'unknown'} and those that were tried are {tried}"


def _is_instance_attribute(owner: type[Any], name: str) -> bool:
    for base in owner.__mro__:
        code = getattr(base.__dict__.get("__init__"), "__code__", None)
        if name in inspect.get_annotations(base) or (code is not None and name in code.co_names):
            return True
    return False


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        names = inspect.signature(function).parameters
    except (TypeError, ValueError):  # not callable, or built in
        return ()
    return tuple(name for name in names if name not in ("self", "cls"))
