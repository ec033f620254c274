"""From a `model_ref` to a pipeline of diffusers in memory: safetensors only, and only code of diffusers and
transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from deployments.torch_runtime.device import torch_device
from deployments.vision.generation_params import parameters
from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.json_file import read_json
from rbee_serve.model_files.memory_check import require_memory, weights_memory_bytes
from rbee_serve.model_files.resolve import Format, prepare, refuse_pickles
from rbee_serve.model_files.safetensors_header import read_safetensors_header
from rbee_serve.model_files.weight_files import weights_in
from rbee_serve.state import LoadProgress
from rbee_serve.worker.registry import import_engine
from rbee_serve.worker.spec import LoadContext

FORMATS: tuple[Format, ...] = ("safetensors",)


class DiffusersOptions(BaseModel):
    """`engine:` of the task `generate`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """The type of the weights in memory; as they are stored, for `auto`."""
    max_side: Annotated[int, Field(ge=8, le=16_384)] | None = None
    """The longest side of an image in pixels; twice what the model was trained for, if left out."""
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Denoising steps where a request names none; the pipeline's own number if left out."""
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    """The guidance where a request names none; the pipeline's own if left out."""
    lora_modules: dict[str, str] = Field(default_factory=dict)
    """LoRA adapters by the name that requests use, each as a `model_ref`."""
    enforce_eager: bool = False
    """Whether to run every step on a GPU without CUDA graphs (the name is vLLM's). By default a step is captured as a
    CUDA graph and replayed, which takes some of the GPU's memory."""
    safety_checker: bool = True
    """Whether the model's safety checker, where it has one, blacks out images that it finds unsafe."""


def load_pipeline(context: LoadContext, options: DiffusersOptions) -> Any:
    """Fetch and check the model's files, then load it. Raises `ConfigurationError`, `InsufficientVram`,
    `InsufficientResources`."""
    worker, device = context.worker, context.device
    assert worker.model_ref is not None
    folder = prepare(worker.model_ref, context.report, formats=FORMATS, variant_for=options.dtype)
    adapters = {name: prepare(ref, context.report, formats=FORMATS) for name, ref in options.lora_modules.items()}
    context.report(LoadProgress(stage="starting_engine"))
    _import_quietly("transformers")
    diffusers = _import_quietly("diffusers")
    parts = pipeline_parts(folder, diffusers)
    found = weights_in(folder, options.dtype)
    weights = [folder / name for name in found.names]
    needed = sum(weights_memory_bytes(file, options.dtype) for file in weights)
    context.wait_for_gpu()
    require_memory(device, {"weights": needed})
    context.report(LoadProgress(stage="loading_to_vram"))
    no_checker = {"safety_checker": None, "requires_safety_checker": False}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        folder,
        dtype=_dtype(weights, options.dtype),
        variant=found.variant,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        **(no_checker if "safety_checker" in parts and not options.safety_checker else {}),
    )
    pipeline.to(torch_device(device))
    for name, adapter in adapters.items():
        pipeline.load_lora_weights(adapter, adapter_name=name, use_safetensors=True, local_files_only=True)
    return pipeline


def _import_quietly(name: str) -> Any:
    library = import_engine(name, "vision")
    library.utils.logging.set_verbosity_error()  # its warnings quote prompts
    library.utils.logging.disable_progress_bar()
    return library


def pipeline_parts(folder: Path, diffusers: Any) -> list[str]:
    """The parts of the pipeline in `folder`. Raises `ConfigurationError` where there is no pipeline, or one with code
    that is not of diffusers and transformers."""
    if not (folder / "model_index.json").is_file():
        raise ConfigurationError(f"model_ref: {folder} has no model_index.json, so it is not a pipeline of diffusers")
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    known = getattr(diffusers, kind, None) if isinstance(kind, str) else None
    if not (isinstance(known, type) and issubclass(known, diffusers.DiffusionPipeline)):
        raise ConfigurationError(
            f"model_ref: {folder} is a {kind!r}, which diffusers does not have; code that comes with a model is not run"
        )
    if missing := sorted({"prompt", "callback_on_step_end"} - parameters(known).keys()):
        raise ConfigurationError(f"model_ref: a {kind} takes no {missing[0]}, so it cannot be used here")
    # Some pipelines have parts of their own in their folders within diffusers.
    folders = Path(diffusers.__file__).parent.glob("pipelines/*")
    libraries = {"diffusers", "transformers", *(path.name for path in folders)}
    parts = {name: entry for name, entry in index.items() if name[0] != "_" and isinstance(entry, list) and entry[0]}
    for name, (library, *_) in parts.items():
        if str(library) not in libraries:
            raise ConfigurationError(
                f"model_ref: {folder} takes its {name} from {library!r}, which is neither diffusers nor transformers;"
                " code that comes with a model is not run"
            )
        refuse_pickles(folder / name)
    return list(parts)


def _dtype(weights: Sequence[Path], name: str) -> Any:
    import torch

    if name != "auto":
        return getattr(torch, name)
    largest = max(weights, key=lambda file: file.stat().st_size)
    stored = read_safetensors_header(largest).tensors[0].type
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(stored, torch.float32)
