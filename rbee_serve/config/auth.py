"""`auth:`"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from rbee_serve.config.base import ConfigModel
from rbee_serve.config.secret_file import read_token
from rbee_serve.config.worker import WorkerId
from rbee_serve.errors import ConfigurationError

SINGLE_KEY = "token_file"
"""The name of the key in `auth.token_file`, in logs and metrics."""
SUPERVISOR_KEY = "supervisor"
"""The name of the supervisor's own key, in logs and metrics."""


class KeyConfig(ConfigModel):
    """One key: a bearer token in a file, what it may use, and how much of it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """Its name in logs and metrics, where the token never appears."""
    token_file: Path
    """A file whose first line is the bearer token. It is read again when it changes."""
    workers: Annotated[list[WorkerId], Field(min_length=1)] | None = None
    """The workers that the key may use; all of them if left out."""
    max_ongoing_requests: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Inference requests that the key may have at once in an ingress replica; any number if left out."""
    max_requests_per_minute: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Inference requests that the key may send to an ingress replica in any 60 s; any number if left out."""


class AuthConfig(ConfigModel):
    """Who may send requests. Without a key the server listens on the loopback address only."""

    token_file: Path | None = None
    """A file whose first line is the bearer token of a key that may use everything. A file and not a value, because
    Ray's dashboard shows values."""
    keys: list[KeyConfig] = Field(default_factory=list)
    """Further keys, each with a name, and with the workers and the number of requests that it is limited to."""
    supervisor_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the supervisor's own token, which is random and new at each start. The supervisor sets it."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [key.name for key in self.keys]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"keys: the name {', '.join(doubled)} is given more than once")
        if reserved := sorted({SINGLE_KEY, SUPERVISOR_KEY}.intersection(names)):
            raise ValueError(f"keys: the name {', '.join(reserved)} is taken by rbee-serve itself")
        return self

    @property
    def required(self) -> bool:
        """Whether a request needs a token."""
        return self.token_file is not None or bool(self.keys)

    def token_files(self) -> Iterator[tuple[str, str, Path]]:
        """Of each key its path in the configuration, its name and its file."""
        if self.token_file is not None:
            yield "auth.token_file", SINGLE_KEY, self.token_file
        for index, key in enumerate(self.keys):
            yield f"auth.keys[{index}].token_file", key.name, key.token_file

    def token_file_for(self, worker_id: str) -> Path | None:
        """The file of a key that may use the worker; None where there is none."""
        allowed = (key.token_file for key in self.keys if key.workers is None or worker_id in key.workers)
        return self.token_file or next(allowed, None)

    def faults(self, worker_ids: Collection[str]) -> Iterator[str]:
        """What is wrong with the keys, each fault with its path: files that cannot be used, two keys with one token,
        workers that do not exist."""
        owners: dict[bytes, str] = {}
        for path, name, file in self.token_files():
            try:
                token = read_token(file)
            except ConfigurationError as exc:
                yield f"{path}: {exc}"
                continue
            owner = owners.setdefault(hashlib.sha256(token).digest(), name)
            if owner != name:
                yield f"{path}: {file} has the token of the key {owner}; give each key a token of its own"
        for index, key in enumerate(self.keys):
            for position, worker_id in enumerate(key.workers or ()):
                if worker_id not in worker_ids:
                    yield f"auth.keys[{index}].workers[{position}]: no worker has the id {worker_id}"
