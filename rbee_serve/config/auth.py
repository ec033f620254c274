"""`auth:`"""

from __future__ import annotations

from pathlib import Path

from rbee_serve.config.base import ConfigModel
from rbee_serve.errors import ConfigurationError


class AuthConfig(ConfigModel):
    """Who may send requests. Without a token the server listens on the loopback address only."""

    token_file: Path | None = None
    """A file whose first line is the bearer token. A file and not a value, because Ray's dashboard shows values."""

    def token(self) -> bytes | None:
        """The token, or None where none is configured. Raises `ConfigurationError` on an unreadable or empty file."""
        if self.token_file is None:
            return None
        try:
            token = self.token_file.expanduser().read_bytes().split(b"\n", 1)[0].strip()
        except OSError as exc:
            raise ConfigurationError(f"auth.token_file: {self.token_file} cannot be read: {exc.strerror}") from exc
        if not token:
            raise ConfigurationError(
                f"auth.token_file: the first line of {self.token_file} is empty; write a token there"
            )
        return token
