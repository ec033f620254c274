"""The JSON files of a model, read within bounds: they are untrusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rbee_serve.errors import ConfigurationError

MAX_JSON_BYTES = 64 * 2**20


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a model's file. Raises `ConfigurationError` if it has none."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ConfigurationError(f"{path} is larger than {MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_bytes())
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise ConfigurationError(f"{path} is not JSON") from exc
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path} is not a JSON object")
    return value
