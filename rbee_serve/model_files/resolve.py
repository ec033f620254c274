"""From a `model_ref` to a local folder for an engine.

    resolve   reference -> files on this machine (downloaded if missing) in a known format
    prepare   resolve, check the header of every weights file, convert a GGUF

Known formats are safetensors and GGUF, for vLLM and transformers, and CTranslate2. A GGUF is dequantised: a 4-bit file
takes the memory of its float form. Reading a pickle can run code, so a pickle is refused whatever its name. Code that
comes with a model is never run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.ctranslate2_header import read_ctranslate2_header
from rbee_serve.model_files.gguf_conversion import FloatType, converted_gguf
from rbee_serve.model_files.gguf_header import read_gguf_header
from rbee_serve.model_files.huggingface_download import download
from rbee_serve.model_files.json_file import read_json
from rbee_serve.model_files.model_ref import HubModel, parse_model_ref
from rbee_serve.model_files.safetensors_header import read_safetensors_header
from rbee_serve.model_files.weight_files import refuse_mistral_layout, weights_in
from rbee_serve.state import LoadProgress

logger = logging.getLogger(__name__)

PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
"""Suffixes of files that torch unpickles."""

Format = Literal["safetensors", "gguf", "ctranslate2"]
TORCH_FORMATS: tuple[Format, ...] = ("safetensors", "gguf")
"""The formats that `prepare` accepts for vLLM and transformers."""
CTRANSLATE2_WEIGHTS = "model.bin"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on this machine. `path` is its folder, or the GGUF file; `bytes_on_disk` is the size of its weights, each
    counted once."""

    path: Path
    format: Format
    bytes_on_disk: int


def resolve(ref: str, report: Callable[[LoadProgress], None], *, variant_for: str | None = None) -> ModelFiles:
    """The files of a `model_ref`; a Hub model is downloaded, and `report` gets the bytes as `downloading`.

    `variant_for` is the dtype, by torch's name, of a loader that can load a variant of the weights, such as
    `model.fp16.safetensors` for `float16` (`weight_files`). Raises `ConfigurationError` for an invalid reference, a
    missing model or an unknown format, and `InsufficientResources` if the disk is too small.
    """
    model = parse_model_ref(ref)
    path = download(model, report, variant_for=variant_for) if isinstance(model, HubModel) else model.locate()
    if path.is_file():
        return _single_file(path)
    if safetensors := _safetensors(path):
        names = [file.relative_to(path).as_posix() for file in (*safetensors, *path.glob("*.json"))]
        refuse_mistral_layout(names, str(path))
        return ModelFiles(path, "safetensors", weights_bytes(path, variant_for))
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return ModelFiles(ggufs[0], "gguf", ggufs[0].stat().st_size)
    if ggufs:
        raise ConfigurationError(f"{path} has {len(ggufs)} GGUF files, such as {ggufs[0].name}; add the name of one")
    if (weights := path / CTRANSLATE2_WEIGHTS).is_file():
        return ModelFiles(path, "ctranslate2", weights.stat().st_size)
    if pickle := next((file for file in sorted(path.rglob("*")) if file.suffix in PICKLES), None):
        raise _pickle_error(pickle)
    raise ConfigurationError(f"{path} has no weights: neither *.safetensors, *.gguf nor model.bin")


def prepare(
    ref: str,
    report: Callable[[LoadProgress], None],
    *,
    formats: Collection[Format] = TORCH_FORMATS,
    cache_dir: Path | None = None,
    dtype: FloatType = "float32",
    variant_for: str | None = None,
) -> Path:
    """A local folder for an engine: `resolve`, then check every header and convert a GGUF.

    `formats` are those of the engine; `dtype` is the type of a dequantised GGUF, `cache_dir` its cache
    (`default_cache_dir()` if None); `variant_for` as in `resolve`. Raises `ConfigurationError` and
    `InsufficientResources` with a message for the operator.
    """
    files = resolve(ref, report, variant_for=variant_for)
    if files.format != "gguf":  # the conversion checks it
        _check_headers(files, variant_for)
    _check_format(files, formats)
    if files.format == "gguf":
        return converted_gguf(files.path, report, cache_dir=cache_dir, dtype=dtype)
    _warn_about_code(files.path)
    return files.path


def check_local(worker: WorkerConfig, formats: Collection[Format] = TORCH_FORMATS) -> None:
    """Check the files of a worker's local model as `prepare` does, without converting; for the `check` of worker types.

    A model on the Hub is not checked. Raises `ConfigurationError` with a message that begins with `model_ref: `.
    """
    if worker.model_ref is None or isinstance(parse_model_ref(worker.model_ref), HubModel):
        return
    try:
        files = resolve(worker.model_ref, lambda progress: None)
        _check_headers(files)
        _check_format(files, formats)
    except ConfigurationError as exc:
        raise ConfigurationError(f"model_ref: {str(exc).removeprefix('model_ref: ')}") from exc


def refuse_pickles(folder: Path) -> None:
    """Raise `ConfigurationError` if the folder of a model's part has weights in a pickle and none in safetensors."""
    files = sorted(folder.glob("*"))
    pickle = next((file for file in files if file.suffix in PICKLES), None)
    if pickle and not any(file.suffix == ".safetensors" for file in files):
        raise _pickle_error(pickle)


def weights_bytes(path: Path, variant_for: str | None = None) -> int:
    """Bytes of the weights of a file or folder, as stored, each counted once. `variant_for` as in `resolve`."""
    if path.is_file():
        return path.stat().st_size
    return sum((path / name).stat().st_size for name in weights_in(path, variant_for).names)


def _safetensors(folder: Path) -> list[Path]:
    """All safetensors files of a folder and its subfolders, those that are not loaded among them."""
    return sorted(folder.rglob("*.safetensors"))


def _single_file(path: Path) -> ModelFiles:
    if path.suffix == ".gguf":
        return ModelFiles(path, "gguf", path.stat().st_size)
    if path.suffix == ".safetensors":
        raise ConfigurationError(f"{path} is one file; use its folder, which has the configuration too")
    if path.suffix in PICKLES:
        raise _pickle_error(path)
    raise ConfigurationError(f"{path} is neither a folder with *.safetensors nor a *.gguf file")


def _pickle_error(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{path} may be a pickle, which can run code when it is read, so it is never loaded; use a model in"
        " safetensors or GGUF format"
    )


def _check_format(files: ModelFiles, formats: Collection[Format]) -> None:
    if files.format not in formats:
        raise ConfigurationError(f"{files.path} is a {files.format} model; this engine takes {' or '.join(formats)}")


def _check_headers(files: ModelFiles, variant_for: str | None = None) -> None:
    if files.format == "gguf":
        read_gguf_header(files.path)
        return
    if files.format == "ctranslate2":
        read_ctranslate2_header(files.path / CTRANSLATE2_WEIGHTS)
        return
    for file in _safetensors(files.path):  # vLLM may read those too that it does not need
        read_safetensors_header(file)
    if missing := weights_in(files.path, variant_for).missing:  # as after an interrupted download
        raise ConfigurationError(f"{files.path / missing[0]} of its index is missing; download the model again")


def _warn_about_code(folder: Path) -> None:
    config = folder / "config.json"
    if config.is_file() and "auto_map" in read_json(config):
        # Engines have their own code for most such models, and report an unknown architecture by name.
        logger.warning("%s contains code (auto_map), which is not run", folder)
