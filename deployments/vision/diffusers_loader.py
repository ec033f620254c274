"""From a `model_ref` to a pipeline of diffusers in memory: safetensors only, and no code but that of diffusers and
transformers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from deployments.torch_runtime.device import torch_device
from deployments.vision.generation_params import parameters
from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.memory_check import require_memory, weights_memory_bytes
from rbee_serve.model_files.resolve import Format, prepare, read_json, refuse_pickles
from rbee_serve.model_files.safetensors_header import read_safetensors_header
from rbee_serve.state import LoadProgress
from rbee_serve.worker.registry import import_engine
from rbee_serve.worker.spec import LoadContext

FORMATS: tuple[Format, ...] = ("safetensors",)


class Options(BaseModel):
    """`engine:` of a worker that makes pictures."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """The type of the weights in memory; as they are stored, for `auto`."""
    max_side: Annotated[int, Field(ge=8, le=16_384)] | None = None
    """The longest side of a picture in pixels; twice what the model was made for, if left out."""
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Denoising steps where a request names none; the pipeline's own number if left out."""
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = None
    """The guidance where a request names none; the pipeline's own if left out."""
    lora_modules: dict[str, str] = Field(default_factory=dict)
    """LoRA adapters by the name that requests use, each as a `model_ref`."""
    enforce_eager: bool = False
    """Whether a GPU is told each operation of each step, as vLLM calls it; if not, a step is recorded as a CUDA graph
    and told in one call, which takes some of the GPU's memory."""
    safety_checker: bool = True
    """Whether the model's safety checker blacks out what it finds unsafe, where the model has one."""


def load_pipeline(context: LoadContext, options: Options) -> Any:
    """Fetch and check the model's files, then load it. Raises `ConfigurationError`, or that it does not fit."""
    worker, device = context.worker, context.device
    assert worker.model_ref is not None
    folder = prepare(worker.model_ref, context.report, formats=FORMATS)
    adapters = {name: prepare(ref, context.report, formats=FORMATS) for name, ref in options.lora_modules.items()}
    context.report(LoadProgress(stage="starting_engine"))
    _quiet("transformers")
    diffusers = _quiet("diffusers")
    parts = pipeline_parts(folder, diffusers)
    weights = [file for part in parts for file in _weights(folder / part)]
    needed = sum(weights_memory_bytes(file, options.dtype) for file in weights)
    require_memory(device, {"weights": needed}, device.fraction)
    torch = importlib.import_module("torch")
    context.report(LoadProgress(stage="loading_to_vram"))
    without = {"safety_checker": None, "requires_safety_checker": False}
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        folder,
        dtype=_dtype(torch, weights, options.dtype),
        variant="fp16" if any(".fp16" in file.name for file in weights) else None,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        **(without if "safety_checker" in parts and not options.safety_checker else {}),
    )
    pipeline.to(torch_device(device))
    for name, adapter in adapters.items():
        pipeline.load_lora_weights(adapter, adapter_name=name, use_safetensors=True, local_files_only=True)
    return pipeline


def _quiet(name: str) -> Any:
    library = import_engine(name, "vision")
    library.utils.logging.set_verbosity_error()  # its warnings quote prompts
    library.utils.logging.disable_progress_bar()
    return library


def pipeline_parts(folder: Path, diffusers: Any) -> list[str]:
    """The parts of the pipeline in `folder`. Raises `ConfigurationError` where there is none, or where it takes code
    from anywhere but diffusers and transformers."""
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
    # Beside its models diffusers has parts of some pipelines in the folders of these.
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


def _weights(folder: Path) -> list[Path]:
    """The safetensors of a part that are loaded: those in half precision only where there are no others."""
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if ".fp16" not in file.name] or files


def _dtype(torch: Any, weights: Sequence[Path], name: str) -> Any:
    if name != "auto":
        return getattr(torch, name)
    largest = max(weights, key=lambda file: file.stat().st_size)
    stored = read_safetensors_header(largest).tensors[0].type
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(stored, torch.float32)
