"""The options of an engine on vLLM: the schema of `engine:`, and values that follow from the device and the model."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from deployments.vllm_runtime.cpu_worker import worker_options
from deployments.vllm_runtime.mistral_files import tokenizer_option
from deployments.vllm_runtime.option_schema import faults_of
from deployments.vllm_runtime.parallel_sizes import tensor_parallel_size
from deployments.vllm_runtime.progress_loader import LOAD_FORMAT
from rbee_serve.config import WorkerConfig, parse_engine
from rbee_serve.errors import ConfigurationError
from rbee_serve.worker.gpu_limit import memory_fraction
from rbee_serve.worker.spec import LoadContext

MAX_SEQUENCES = {"cuda": 1024, "cpu": 128}
"""vLLM's own default of `max_num_seqs` on its largest GPUs and on a CPU (`vllm/engine/arg_utils.py`)."""

CPU_KV_CACHE_BYTES = 1024**3
"""The KV cache on a CPU unless `kv_cache_memory_bytes` is set. vLLM would take half of the machine's memory."""

LOAD_FORMATS = (
    "auto", "safetensors", "fastsafetensors", "instanttensor", "runai_streamer", "runai_streamer_sharded",
    "sharded_state", "mistral",
)  # fmt: skip
"""Values of vLLM's `load_format` that read safetensors and nothing else. The others unpickle (`pt`, `npcache`, and `hf`
where it finds no safetensors), receive weights from another process (`ipc_cache`, by pickles; `modelexpress`), need
weights in a format of their own (`tensorizer`), or read none (`dummy`)."""

OWN_DEFAULTS = (("load_format", "auto"), ("tokenizer_mode", "auto"))
"""Options that follow from the model where they are `auto`."""

_RESERVED = {
    "model": "it follows from model_ref",
    "served_model_name": "it follows from model_name",
    "tensor_parallel_size": "it follows from gpus",
    "runner": "it follows from the worker type",
    "disable_log_stats": "hang detection needs the engine's statistics",
}


class VllmOptions(BaseModel):
    """`engine:` of a worker on vLLM: vLLM's own options by vLLM's names, written with `_` or `-`. Those below are read
    here as well; the others are passed on, and their names are compared with vLLM's when the model is loaded."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    dtype: str | None = None
    """The type of the weights. On a CPU without fast bfloat16 the default is float32."""
    load_format: str = "auto"
    """How weights are read: `auto` reads safetensors and reports progress. The others of `LOAD_FORMATS` are vLLM's own
    and report none; those that do not read safetensors are refused."""
    tokenizer_mode: str = "auto"
    """The tokenizer's class, by vLLM's name. `mistral` is refused."""
    trust_remote_code: bool = False
    """Refused if true: a model is data, not code."""
    lora_modules: dict[str, str] = Field(default_factory=dict)
    """LoRA adapters: a table of name and folder. Requests choose one by name (`lora`)."""
    kv_cache_memory_bytes: Annotated[int, Field(ge=1)] | None = None
    """Bytes of the KV cache; 1 GiB on a CPU by default."""
    max_num_seqs: Annotated[int, Field(ge=1)] | None = None
    """Requests in a step of the engine; as many as the worker runs at once if left out."""
    max_num_batched_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens in a step of the engine; vLLM's default if left out."""
    enable_chunked_prefill: bool | None = None
    """Whether a long prompt may be read in several steps; vLLM's default if left out."""
    model: Any = None
    """Refused; set `model_ref`."""
    served_model_name: Any = None
    """Refused; set `model_name`."""
    tensor_parallel_size: Any = None
    """Refused; set `gpus`."""
    runner: Any = None
    """Refused; the worker type decides it."""
    disable_log_stats: Any = None
    """Refused; hang detection needs the statistics."""

    @model_validator(mode="before")
    @classmethod
    def _with_underscores(cls, values: Any) -> Any:
        return {name.replace("-", "_"): value for name, value in values.items()} if isinstance(values, dict) else values

    @field_validator(*_RESERVED)
    @classmethod
    def _refuse_reserved(cls, value: object, info: ValidationInfo) -> object:
        raise ValueError(f"cannot be set here: {_RESERVED[str(info.field_name)]}; leave it out")

    @field_validator("trust_remote_code")
    @classmethod
    def _refuse_remote_code(cls, value: bool) -> bool:
        if value:
            raise ValueError("is refused; a model is data, not code")
        return value

    @field_validator("load_format")
    @classmethod
    def _refuse_other_formats(cls, value: str) -> str:
        if value not in LOAD_FORMATS:
            raise ValueError(f"{value} may read other files than safetensors; use one of {', '.join(LOAD_FORMATS)}")
        return value

    @field_validator("tokenizer_mode")
    @classmethod
    def _refuse_mistral_tokenizer(cls, value: str) -> str:
        if value.lower() == "mistral":
            raise ValueError("mistral is not a tokenizer of transformers, which chats need here; use auto or hf")
        return value

    def for_vllm(self) -> dict[str, Any]:
        """The options that were given, by vLLM's names in Python."""
        given = self.model_dump(exclude_unset=True)
        given.pop("lora_modules", None)
        return {name: value for name, value in given.items() if (name, value) not in OWN_DEFAULTS}


def vllm_options(worker: WorkerConfig) -> VllmOptions:
    """The worker's `engine:`. Raises `ConfigurationError`."""
    return parse_engine(VllmOptions, worker)


def check_engine(worker: WorkerConfig) -> None:
    """Raise `ConfigurationError` on options that are refused, or that vLLM does not have, before anything starts. Reads
    vLLM's source files and imports nothing."""
    vllm_options(worker)
    own = {"lora_modules", "load_format"}
    options = {name: value for name, value in worker.engine.items() if name.replace("-", "_") not in own}
    if faults := [f"engine.{path}: {sentence}" for path, sentence in faults_of(options)]:
        raise ConfigurationError("\n".join(faults))


def check_names(options: dict[str, Any], worker_id: str) -> None:
    """Raise `ConfigurationError` on names that the installed vLLM does not have. Imports vLLM, which takes seconds."""
    from vllm import AsyncEngineArgs

    known = set(AsyncEngineArgs.__dataclass_fields__)
    if unknown := sorted(set(options) - known):
        raise ConfigurationError(
            f"worker {worker_id}: vLLM has no engine option {', '.join(_with_hint(name, known) for name in unknown)}"
        )


def _with_hint(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"{name!r} (did you mean {near[0]}?)" if near else repr(name)


def engine_options(context: LoadContext, model: Path) -> dict[str, Any]:
    """vLLM's engine arguments: what follows from the device, overridden by the configuration."""
    device = context.device
    options: dict[str, Any] = {
        "model": str(model),
        "served_model_name": context.worker.served_name,
        "trust_remote_code": False,
        "load_format": LOAD_FORMAT,
        **tokenizer_option(model),
        "distributed_executor_backend": "mp" if len(device.ids) > 1 else "uni",
    }
    if device.accelerator == "cuda":
        # Ray assigns shares of a GPU but does not enforce them.
        options["gpu_memory_utilization"] = round(memory_fraction(device), 4)
        options["tensor_parallel_size"] = tensor_parallel_size(len(device.ids), context.worker.engine)
    else:
        options["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
        options["enforce_eager"] = True
        options |= worker_options()
    return options | vllm_options(context.worker).for_vllm()


def sequences_default(context: LoadContext, default_requests: int) -> dict[str, Any]:
    """vLLM's `max_num_seqs` for a worker type that gives each request to the engine as one sequence: as many as run at
    once, which are `default_requests` unless the configuration sets them. vLLM reserves buffers and captures CUDA
    graphs for that number, and its own is 1,024 on a large GPU."""
    requests = context.worker.max_ongoing_requests or default_requests
    limits = [requests, MAX_SEQUENCES[context.device.accelerator]]
    if tokens := vllm_options(context.worker).max_num_batched_tokens:
        limits.append(tokens)  # vLLM refuses more sequences than tokens in a step
    return {"max_num_seqs": min(limits)}


def with_defaults(options: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The options, and those defaults that they leave out. A default that is a table, such as `limit_mm_per_prompt`,
    adds the keys that the given table leaves out."""
    tables = {
        name: table | options[name]
        for name, table in defaults.items()
        if isinstance(table, dict) and isinstance(options.get(name), dict)
    }
    return defaults | options | tables
