"""The long request of each worker type, as the JSON body that a client sends."""

from __future__ import annotations

import json
from typing import Any

from rbee_serve.worker.spec import WorkerSpec

WITH_AN_IMAGE: dict[str, Any] = {
    "modalities": ["text", "image"],
    "picture": {"prompt": "a handwritten seven", "steps": 150},
}
"""Added to the long request of the multimodal type: its text alone is generated in a second."""


def long_request(name: str, spec: WorkerSpec[Any]) -> dict[str, Any]:
    """The fields of the long request of the type `name`."""
    assert spec.long_request is not None, f"{name} has no long_request"
    body = dict(json.loads(spec.long_request().model_dump_json(exclude_unset=True)))
    return body | WITH_AN_IMAGE if name == "multimodal" else body
