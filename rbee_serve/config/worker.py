"""One entry of `workers:`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rbee_serve.config.autoscaling import AutoscalingConfig
from rbee_serve.config.base import ConfigModel
from rbee_serve.config.sentences import EXPECTED

Backend = Literal["auto", "cuda", "cpu", "metal"]
WorkerId = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9_-]{1,256}$",
        json_schema_extra={EXPECTED: "letters, digits, - and _ only, such as llm-0"},
    ),
]


DEFAULT_HANG_TIMEOUT_S = 28.0
HANG_TIMEOUT_S = {"cuda": 60.0}
"""By accelerator. On CUDA a request of a new form may compile kernels first: Triton and FlashInfer compile a form at
its first use, and the driver a library's PTX where the GPU is newer than the library."""


class WorkerConfig(ConfigModel):
    """One worker: a Ray Serve deployment of its own, named by `id`."""

    id: WorkerId
    """Its name in URLs, in the orchestrator and in Ray Serve."""
    type: str
    """A name from `deployments/registry.py`, or `module:ATTRIBUTE` of a `WorkerSpec` in any installed package."""
    task: str | None = None
    """Which of the type's tasks, where it has several; the first one if left out."""
    model_ref: str | None = None
    """`hf:org/name[@revision]`, `file:PATH` or `pkg:PACKAGE/PATH`."""
    model_name: str | None = None
    """The model's name in requests and reports; the `model_ref` itself if left out."""
    backend: Backend = "auto"
    """Where the model runs. `auto` takes CUDA if the worker requests GPUs, else Metal or the CPU."""
    gpus: Annotated[float, Field(ge=0, le=64)] = 0
    """GPUs for each replica: whole ones, or a fraction of one."""
    cpus: Annotated[float, Field(ge=0, le=1024)] = 1
    """CPU cores that Ray reserves for each replica."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Compute threads in each replica. All cores if left out."""
    replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of replicas."""
    autoscaling: AutoscalingConfig | None = None
    """Ray Serve's `autoscaling_config`, by its own names, in place of a fixed number of replicas."""
    max_ongoing_requests: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Requests that run at once in a replica; the worker type's default if left out."""
    max_queued_requests: Annotated[int, Field(ge=0, le=100_000)] = 1000
    """Requests that may wait in a replica beyond those that run. The next one is refused with 503."""
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """Deadline of a request in seconds from its arrival, including the time in the queue."""
    hang_timeout_s: Annotated[float, Field(gt=0, le=86_400)] | None = None
    """Seconds without a step, while requests run, after which the engine counts as hung and its replica is replaced.
    Must be longer than the engine's slowest single step; 60 on CUDA and 28 elsewhere if left out."""
    load_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds within which the model must be loaded."""
    uses: dict[str, WorkerId] = Field(default_factory=dict)
    """Other workers of this file that this one calls, by their role, such as `audio: speech-0`."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Options of the inference engine, by the engine's own names."""
    limits: dict[str, int | float] = Field(default_factory=dict)
    """Maximum of a request field, by field, that replaces the default one, such as `max_tokens: 8192`."""

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus: {self.gpus} is neither whole nor a fraction of one")
        if self.gpus and self.backend in ("cpu", "metal"):
            raise ValueError(f"gpus: {self.gpus} and backend: {self.backend} exclude each other")
        if self.autoscaling is not None and self.replicas != 1:
            raise ValueError("replicas and autoscaling exclude each other")
        return self

    def warnings(self) -> list[str]:
        """What an operator should know although it is allowed, a sentence each."""
        on_gpu = self.backend == "cuda" or (self.backend == "auto" and self.gpus > 0)
        ref = self.model_ref or ""
        name = (ref.partition("@")[0] if ref.startswith("hf:") else ref).rpartition("/")[2]
        if not on_gpu or "gguf" not in name.lower():
            return []
        cost = "a 4-bit file takes four times its size of GPU memory and is no faster"
        remedy = "use the same model as AWQ, GPTQ or FP8 in safetensors"
        return [f"worker {self.id}: a GGUF is dequantised, so {cost}; {remedy}"]

    def hang_timeout_on(self, accelerator: str) -> float:
        """`hang_timeout_s` for a replica on `cuda`, `cpu` or `metal`."""
        return self.hang_timeout_s or HANG_TIMEOUT_S.get(accelerator, DEFAULT_HANG_TIMEOUT_S)

    @property
    def desired_replicas(self) -> int:
        """Replicas that should be running: the fixed number, or the minimum of autoscaling."""
        if self.autoscaling is None:
            return self.replicas
        return self.autoscaling.min_replicas

    @property
    def served_name(self) -> str:
        """The model's name for clients."""
        return self.model_name or self.model_ref or self.type
