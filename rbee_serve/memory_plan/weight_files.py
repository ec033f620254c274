"""Which files of a repository or folder hold the weights that an engine loads."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatch

_VARIANT = re.compile(r"(?P<stem>.+)\.[A-Za-z0-9_]+(?:-\d{5}-of-\d{5})?\.safetensors")
_SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.safetensors$)")

CONFIGS = ("config.json", "*/config.json", "model_index.json", "sentence_bert_config.json")
"""The configuration files that the plan reads, as patterns; `*/` is one folder."""

MAX_CONFIG_BYTES = 4 * 2**20


def loaded_weights(names: Iterable[str]) -> list[str]:
    """The safetensors files, without the same weights in another precision (`model.fp16.safetensors` beside
    `model.safetensors`, in shards or not) and in another library's layout; else `model.bin` of CTranslate2, else GGUF.
    """
    names = sorted(names)
    found = [name for name in names if name.endswith(".safetensors")]
    plain = {_SHARD.sub("", name) for name in found}
    found = [
        name
        for name in found
        if not ((match := _VARIANT.fullmatch(name)) and f"{match['stem']}.safetensors" in plain)
        and not (fnmatch(name, "consolidated*") and len(plain) > 1)
    ]
    if "model_index.json" in names:  # a pipeline loads the folders of its parts
        found = [name for name in found if "/" in name] or found
    return found or [name for name in names if name == "model.bin"] or [name for name in names if name.endswith("gguf")]


def is_config(name: str) -> bool:
    """Whether the plan reads this file."""
    return name.count("/") <= 1 and any(fnmatch(name, pattern) for pattern in CONFIGS)
