"""The keys of the configuration, and which of them a token belongs to."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rbee_serve.config import AuthConfig
from rbee_serve.config.auth import SINGLE_KEY, SUPERVISOR_KEY
from rbee_serve.config.secret_file import read_token
from rbee_serve.errors import ConfigurationError
from rbee_serve.ingress.rate_limit import RequestLimit

logger = logging.getLogger(__name__)

CHECK_S = 1.0
"""The files are looked at again after this time: how long a replaced token may still be valid."""
MISS_CHECK_S = 0.05
"""The same before an unknown token is refused: it may be a new one."""
SETTLED_S = 2.0
"""A file that was written so recently may have been written again at the same time by its file system's clock."""

Signature = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the ingress uses it."""

    name: str
    """For logs and metrics."""
    workers: frozenset[str] | None
    """The ids of the workers that it may use; None for all."""
    limit: RequestLimit
    """Its inference requests."""


@dataclass(slots=True)
class _TokenFile:
    key: ApiKey
    path: Path
    digest: bytes = b""
    signature: Signature | None = None


class KeyRing:
    """Finds the key of a token by the SHA-256 of both, so the time of the search does not depend on the tokens.

    The files are read again when they change. While one cannot be used, its last token stays valid.
    """

    def __init__(self, config: AuthConfig, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises `ConfigurationError` if a file cannot be used or two keys have the same token."""
        workers = {key.name: key.workers for key in config.keys}
        faults = list(config.faults({worker for ids in workers.values() for worker in ids or ()}))
        if faults:
            raise ConfigurationError("\n".join(faults))
        keys = {key.name: key for key in _keys(config)}
        self._files = [_TokenFile(keys[name], path.expanduser()) for _, name, path in config.token_files()]
        supervisor = config.supervisor_sha256
        self._fixed = {bytes.fromhex(supervisor): _unlimited(SUPERVISOR_KEY)} if supervisor else {}
        self._clock = clock
        self._keys: dict[bytes, ApiKey] = {}
        self._fault = ""
        self._checked_at = 0.0
        self._read()

    def find(self, token: bytes) -> ApiKey | None:
        """The key that has this token now."""
        digest = hashlib.sha256(token).digest()
        age_s = self._clock() - self._checked_at
        if age_s >= CHECK_S or (age_s >= MISS_CHECK_S and digest not in self._keys):
            self._read()
        return self._keys.get(digest)

    def _read(self) -> None:
        """Read the files that have changed. Their tokens take effect together, or none does."""
        self._checked_at = self._clock()
        changed: dict[int, tuple[bytes, Signature]] = {}
        fault = ""
        for index, file in enumerate(self._files):
            try:
                signature = _signature(file.path)
                if signature != file.signature or time.time() - signature[0] / 1e9 < SETTLED_S:
                    changed[index] = (hashlib.sha256(read_token(file.path)).digest(), signature)
            except (OSError, ConfigurationError) as exc:
                reason = exc.strerror if isinstance(exc, OSError) else exc
                fault = f"the key {file.key.name} keeps its last token: {file.path}: {reason}"
        digests = [changed[n][0] if n in changed else file.digest for n, file in enumerate(self._files)]
        if len(set(digests)) < len(digests) or self._fixed.keys() & set(digests):
            fault, changed = "all keys keep their last tokens: two of them have the same one now", {}
        if fault and fault != self._fault:
            logger.error("%s", fault)
        self._fault = fault
        for index, (digest, signature) in changed.items():
            file = self._files[index]
            if file.digest and digest != file.digest:
                logger.info("the key %s has a new token", file.key.name)
            file.digest, file.signature = digest, signature
        self._keys = {**{file.digest: file.key for file in self._files}, **self._fixed}


def _keys(config: AuthConfig) -> Iterator[ApiKey]:
    if config.token_file is not None:
        yield _unlimited(SINGLE_KEY)
    for key in config.keys:
        workers = None if key.workers is None else frozenset(key.workers)
        yield ApiKey(key.name, workers, RequestLimit(key.max_ongoing_requests, key.max_requests_per_minute))


def _unlimited(name: str) -> ApiKey:
    return ApiKey(name, None, RequestLimit(None, None))


def _signature(path: Path) -> Signature:
    """What changes when the file is replaced or written, also behind a symbolic link."""
    status = path.stat()
    return status.st_mtime_ns, status.st_ino, status.st_size, status.st_ctime_ns
