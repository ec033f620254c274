"""`cors:`, and the form of an origin."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from rbee_serve.config.base import ConfigModel

ANY_ORIGIN = "*"
DEFAULT_PORTS = {"http": "80", "https": "443"}

_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^\s/?#@\\:*,\[\]]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_MALFORMED = (
    "must be an origin such as https://app.example:8443, without a path or a slash at its end; * allows every origin"
)


def normal_origin(text: str) -> str | None:
    """An origin in its one spelling, as browsers send it: in lower case, without the scheme's own port. None if it is
    not an origin; `null`, which many pages share, is one only where it is named."""
    match = _ORIGIN.fullmatch(text.lower())
    if match is None:
        return None
    scheme, host, port = match.groups()
    if port is not None and not 0 < int(port) < 65_536:
        return None
    try:
        host = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return None
    number = str(int(port)) if port is not None else None
    return f"{scheme}://{host}" + (f":{number}" if number and number != DEFAULT_PORTS.get(scheme) else "")


def _checked(value: Any) -> Any:
    if not isinstance(value, str) or value in (ANY_ORIGIN, "null"):
        return value
    origin = normal_origin(value)
    if origin is None:
        raise ValueError(_MALFORMED)
    return origin


class CorsConfig(ConfigModel):
    """Web pages of other origins that may use the server."""

    allow_origins: list[Annotated[str, BeforeValidator(_checked)]] = Field(default_factory=list)
    """Their origins, such as `https://app.example:8443` or `tauri://localhost`; `null` for pages from a file, `*` for
    every page. Without them a page can use the server only if it comes from the server itself."""
