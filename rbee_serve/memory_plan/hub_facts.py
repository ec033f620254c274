"""The facts of a model on the Hugging Face Hub: from its list of files, the headers of its weights and its JSON files.
No weights are fetched, and nothing is written to the cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rbee_serve.errors import ConfigurationError
from rbee_serve.memory_plan.local_facts import facts_of_path
from rbee_serve.memory_plan.model_facts import ModelFacts, WeightFile
from rbee_serve.memory_plan.weight_files import MAX_CONFIG_BYTES, is_config, loaded_weights
from rbee_serve.model_files.huggingface_download import files_to_download
from rbee_serve.model_files.model_ref import HubModel

TIMEOUT_S = 10.0
"""Of each call; the Hub's own client has none."""


class HubUnreachable(Exception):
    """There is no connection to the Hub, or it may not be asked (`HF_HUB_OFFLINE`)."""


def cached_facts(model: HubModel, ref: str) -> ModelFacts | None:
    """The facts of a complete copy in the local cache, or None if there is none."""
    import huggingface_hub as hub

    try:
        folder = hub.snapshot_download(model.repo, revision=model.revision, local_files_only=True, allow_patterns=[])
        facts = facts_of_path(ref, Path(folder))
    except Exception:  # huggingface_hub raises types of its own; a damaged copy is as good as none
        return None
    return facts if facts.weights else None


def hub_facts(model: HubModel, ref: str, *, endpoint: str | None = None) -> ModelFacts | None:
    """The facts by calls of the Hub, or None where it has no such model or does not give it to this user.

    Raises `HubUnreachable`, and `ConfigurationError` for a model without weights that are accepted. `endpoint` is
    huggingface_hub's own (`HF_ENDPOINT`) if None.
    """
    import huggingface_hub as hub

    api = hub.HfApi(endpoint=endpoint)
    try:
        info = api.model_info(model.repo, revision=model.revision, files_metadata=True, timeout=TIMEOUT_S)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings}
        weights = {
            name: WeightFile(sizes[name], _elements(api, model.repo, name, info.sha))
            for name in loaded_weights(files_to_download(model, sizes))
        }
        configs = {
            name: _json(hub, model.repo, name, info.sha, endpoint)
            for name in sizes
            if is_config(name) and sizes[name] <= MAX_CONFIG_BYTES
        }
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
    response = hub.utils.get_session().get(
        url, headers=hub.utils.build_hf_headers(), timeout=TIMEOUT_S, follow_redirects=True
    )
    response.raise_for_status()
    try:
        value = json.loads(response.content)
    except ValueError:
        return {}  # the loader reports it
    return value if isinstance(value, dict) else {}
