"""The facts of a model on the Hugging Face Hub: from its list of files, the headers of its weights and its JSON files.
No weights are fetched, and nothing is written to the cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rbee_serve.errors import ConfigurationError
from rbee_serve.memory_plan.local_facts import facts_of_path
from rbee_serve.memory_plan.model_facts import ModelFacts, WeightFile, is_config
from rbee_serve.model_files.hub_requests import limit_requests
from rbee_serve.model_files.model_ref import HubModel
from rbee_serve.model_files.weight_files import weights_in, weights_to_load

MAX_JSON_BYTES = 16 * 2**20
"""Larger files are not read; an index of 100,000 tensors has 10 MB."""


class HubUnreachable(Exception):
    """There is no connection to the Hub, or requests to it are switched off (`HF_HUB_OFFLINE`)."""


def cached_facts(model: HubModel, ref: str) -> ModelFacts | None:
    """The facts of a complete copy in the local cache, or None if there is none."""
    import huggingface_hub as hub

    try:
        found = hub.snapshot_download(model.repo, revision=model.revision, local_files_only=True, allow_patterns=[])
        folder = Path(found)
        facts = None if weights_in(folder).missing else facts_of_path(ref, folder)
    except Exception:  # huggingface_hub raises types of its own; a damaged copy is as good as none
        return None
    return facts if facts is not None and facts.weights else None


def hub_facts(model: HubModel, ref: str, *, endpoint: str | None = None) -> ModelFacts | None:
    """The facts by calls of the Hub, or None where it has no such model or does not give it to this user. The weights
    of a GGUF are unknown: its header, which has the size after it is dequantised, is not read from the Hub.

    Raises `HubUnreachable`, and `ConfigurationError` for an index without a map. `endpoint` is huggingface_hub's own
    (`HF_ENDPOINT`) if None.
    """
    import huggingface_hub as hub

    limit_requests()
    api = hub.HfApi(endpoint=endpoint)
    try:
        info = api.model_info(model.repo, revision=model.revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings}

        def read(name: str) -> Mapping[str, Any]:
            return _json(hub, model.repo, name, info.sha, endpoint) if sizes[name] <= MAX_JSON_BYTES else {}

        names = weights_to_load(sizes, read).names or [name for name in sizes if name == "model.bin"]
        weights = {name: WeightFile(sizes[name], _elements(api, model.repo, name, info.sha)) for name in names}
        configs = {name: read(name) for name in sizes if is_config(name)}
    except ConfigurationError:
        raise
    except Exception as exc:  # huggingface_hub raises types of its own
        if getattr(getattr(exc, "response", None), "status_code", None) is None:
            raise HubUnreachable from exc
        return None
    return ModelFacts(ref, f"the Hub, revision {str(info.sha)[:8]}", weights, configs)


def _elements(api: Any, repo: str, name: str, revision: str) -> Mapping[str, int] | None:
    if not name.endswith(".safetensors"):
        return None
    header = api.parse_safetensors_file_metadata(repo, name, revision=revision)
    return {str(kind): int(count) for kind, count in header.parameter_count.items()}


def _json(hub: Any, repo: str, name: str, revision: str, endpoint: str | None) -> Mapping[str, Any]:
    url = hub.hf_hub_url(repo, name, revision=revision, endpoint=endpoint)
    response = hub.utils.get_session().get(url, headers=hub.utils.build_hf_headers(), follow_redirects=True)
    response.raise_for_status()
    try:
        value = json.loads(response.content)
    except ValueError:
        return {}  # the loader reports it
    return value if isinstance(value, dict) else {}
