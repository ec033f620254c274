"""Which safetensors files of a model are loaded.

A repository may have the same weights several times, and an engine loads them once:

    model.safetensors                              the plain form
    model-00001-of-00002.safetensors               the same in shards, which `model.safetensors.index.json` names
    model.fp16.safetensors                         a variant, in another precision or of another training state
    model.fp16-00001-of-00002.safetensors          its shards, which `model.safetensors.index.fp16.json` names
    model-00001-of-00002.fp16.safetensors          the same by an older rule of diffusers
    consolidated.safetensors, original/…           the layout of another library
    sd_xl_turbo_1.0.safetensors                    a whole pipeline in one file, beside its parts in folders

The choice works on names, so that it is the same for a list of the Hub and for a folder on this machine. Everything is
kept whose purpose is not known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.json_file import read_json

VARIANT_OF_DTYPE = {"float16": "fp16", "half": "fp16", "bfloat16": "bf16"}
"""The variant that has a dtype's precision already. There is none for float32: the plain form is as good, and smaller
where it is stored in half precision."""

PRECISIONS = ("fp16", "bf16", "fp32")
"""Variants that stand for the plain form where it is missing, the first one first."""

PIPELINE_INDEX = "model_index.json"
"""The file that names the parts of a pipeline of diffusers."""

PART_STEMS = frozenset({"model", "diffusion_pytorch_model"})
"""The names of a part's weights that transformers and diffusers load."""

OTHER_LAYOUTS = ("consolidated", "open_clip")
"""How names of the same weights in the layout of another library begin: Mistral's, and OpenCLIP's."""

ORIGINAL = "original"
"""The folder in which Meta and OpenAI ship the same weights in their own layout."""

_WEIGHTS = re.compile(
    r"(?P<stem>.+?)(?:\.(?P<variant>[A-Za-z]\w*))?(?P<shard>-\d{5}-of-\d{5}(?:\.(?P<old>[A-Za-z]\w*))?)?\.safetensors"
)
_INDEX = re.compile(r"(?P<stem>.+)\.safetensors(?:\.(?P<old>\w+))?\.index(?:\.(?P<variant>\w+))?\.json")

Read = Callable[[str], Mapping[str, Any]]
"""Returns the content of a JSON file of the model."""


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The safetensors files to load, by their names relative to the model, with slashes.

    `missing` are those that an index names and the model lacks. `variant` is what `from_pretrained` of diffusers and
    transformers needs to be given to load these files.
    """

    names: tuple[str, ...]
    missing: tuple[str, ...] = ()
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class _File:
    """A file of weights, or an index of such files: `folder` is empty at the root, `variant` in the plain form."""

    name: str
    folder: str
    stem: str
    variant: str
    kind: Literal["single", "shard", "index"]


def weights_to_load(names: Collection[str], read: Read | None = None, dtype: str | None = None) -> WeightFiles:
    """Choose among a model's files, which are given by their names relative to the model, with slashes.

    `read` returns the content of a JSON file among them; without it the names decide. `dtype` is torch's name of the
    type that the weights are loaded in by a loader that takes a `variant`: a variant with that precision is preferred.
    Raises `ConfigurationError` for an index without a map.
    """
    known = frozenset(names)
    files = _of_one_layout([file for name in sorted(known) if (file := _parsed(name))], known, read)
    variant = _variant(files, dtype)
    chosen: dict[str, None] = {}  # an ordered set
    for folder in sorted({file.folder for file in files}):
        chosen |= dict.fromkeys(_of_folder([file for file in files if file.folder == folder], read, variant))
    return WeightFiles(
        names=tuple(name for name in chosen if name in known),
        missing=tuple(name for name in chosen if name not in known),
        variant=variant,
    )


def weights_in(folder: Path, dtype: str | None = None) -> WeightFiles:
    """The same for a folder on this machine. Raises `ConfigurationError` for an index that cannot be read."""
    files = [file for suffix in ("safetensors", "json") for file in folder.rglob(f"*.{suffix}")]
    names = [file.relative_to(folder).as_posix() for file in files]
    return weights_to_load(names, lambda name: read_json(folder / name), dtype)


def refuse_mistral_layout(names: Collection[str], model: str) -> None:
    """Raise `ConfigurationError` for a model that exists in Mistral's own layout only, with Mistral's tokenizer, which
    is none of transformers. `model` is its name in the message."""
    weights = [name for name in names if name.endswith(".safetensors")]
    if weights and all(name.startswith("consolidated") for name in weights) and "tokenizer.json" not in names:
        raise ConfigurationError(
            f"{model} has Mistral's own files only ({min(weights)} without a tokenizer.json), whose tokenizer cannot be"
            " used here; choose a repository or revision with model.safetensors and tokenizer.json"
        )


def _parsed(name: str) -> _File | None:
    folder, _, file = name.rpartition("/")
    if match := _WEIGHTS.fullmatch(file):
        kind: Literal["single", "shard"] = "shard" if match["shard"] else "single"
        return _File(name, folder, match["stem"], match["variant"] or match["old"] or "", kind)
    if match := _INDEX.fullmatch(file):
        return _File(name, folder, match["stem"], match["variant"] or match["old"] or "", "index")
    return None


def _of_one_layout(files: list[_File], names: Collection[str], read: Read | None) -> list[_File]:
    """Without the same weights in the layout of another library."""
    if PIPELINE_INDEX in names:
        parts = [file for file in files if file.folder and file.stem in PART_STEMS]
        if read is not None:
            entries = read(PIPELINE_INDEX)
            used = [name for name, entry in entries.items() if isinstance(entry, list) and entry and entry[0]]
            parts = [file for file in parts if file.folder in used]
        return parts or [file for file in files if file.folder] or files
    rest = [file for file in files if file.folder.partition("/")[0] != ORIGINAL] or files
    return [file for file in rest if not file.stem.startswith(OTHER_LAYOUTS)] or rest


def _variant(files: Iterable[_File], dtype: str | None) -> str | None:
    """The variant for the whole model: diffusers takes one for all parts, and the plain form of those without it."""
    variants: dict[tuple[str, str], set[str]] = {}
    for file in files:
        if file.kind != "index":
            variants.setdefault((file.folder, file.stem), set()).add(file.variant)
    preferred = VARIANT_OF_DTYPE.get(dtype or "")
    if any(preferred in found for found in variants.values()):
        return preferred
    for found in variants.values():
        if "" not in found and (stand_ins := [precision for precision in PRECISIONS if precision in found]):
            return stand_ins[0]
    return None


def _of_folder(files: list[_File], read: Read | None, variant: str | None) -> list[str]:
    """The files of one folder to load."""
    chosen: list[_File] = []
    for stem in dict.fromkeys(file.stem for file in files):
        group = [file for file in files if file.stem == stem]
        # Without any weights, as after an interrupted download, the index says what is missing.
        found = {file.variant for file in group if file.kind != "index"} or {file.variant for file in group}
        used = next((each for each in (variant, "", *PRECISIONS) if each in found), None)
        # Variants with other names and without a plain form are kept: they may be different weights.
        chosen += [file for file in group if used is None or file.variant == used]
    indexes = [file for file in chosen if file.kind == "index"]
    if read is not None and (named := [name for index in indexes for name in _named_by(index, read)]):
        return named
    return [file.name for file in chosen if file.kind != "index" and not _is_doubled(file, chosen)]


def _is_doubled(file: _File, files: list[_File]) -> bool:
    """Whether the same weights are in `files` as one file and in shards, and this is not the form to load: shards count
    where an index names them."""
    kinds = {other.kind for other in files if other.stem == file.stem}
    return kinds >= {"single", "shard"} and file.kind == ("single" if "index" in kinds else "shard")


def _named_by(index: _File, read: Read) -> list[str]:
    files = read(index.name).get("weight_map")
    if not isinstance(files, dict):
        raise ConfigurationError(f"{index.name} has no weight_map")
    folder = f"{index.folder}/" if index.folder else ""
    return [folder + name for name in sorted({str(name) for name in files.values()})]
