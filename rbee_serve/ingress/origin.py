"""Which web pages may send requests: a browser sends them for every page that its user opens.

Native clients send none of the headers that are checked here, except `Host`. A page cannot leave out or change them.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette._utils import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

from rbee_serve.config import ApplicationConfig
from rbee_serve.config.cors import normal_origin
from rbee_serve.errors import MisdirectedRequest, OriginNotAllowed, WorkerError
from rbee_serve.ingress.cors import Cors
from rbee_serve.ingress.error_responses import error_response
from rbee_serve.ingress.host import LocalHosts

PAGES = frozenset({"/"})
"""Paths of pages for people. A link on any site may lead to them: they do no work and hold nothing of a worker."""

_OWN_SITES = frozenset({b"same-origin", b"none"})
"""`Sec-Fetch-Site` of requests from the server's own pages, and of those that a person typed. `same-site` is not one of
them: it ignores the port, and another program may serve that page."""
_PAGE_METHODS = frozenset({"GET", "HEAD"})


class OriginRules:
    """What a request's `Host`, `Origin` and `Sec-Fetch-Site` have to be."""

    def __init__(self, *, any_host: bool = False, public_url: str | None = None, cors: Cors | None = None) -> None:
        """`any_host`: requests need a token, which a page that was rebound to this address does not have."""
        self._public_origin = normal_origin(public_url) if public_url else None
        public_host = urlsplit(self._public_origin).hostname if self._public_origin else None
        self._hosts = None if any_host else LocalHosts(public_host)
        self.cors = cors or Cors()

    @classmethod
    def of(cls, config: ApplicationConfig) -> OriginRules:
        """The rules of a configuration."""
        cors = Cors(config.cors.allow_origins)
        return cls(any_host=config.auth.required, public_url=config.public_url, cors=cors)

    def check_host(self, values: list[bytes], http_version: str) -> None:
        """Raise `MisdirectedRequest` if the request is not for a name of this server."""
        if self._hosts is not None and not self._hosts.accepts(values, http_version):
            raise MisdirectedRequest("the Host is no name of this server; use localhost, or set public_url to its URL")

    def is_own(self, origin: str, scheme: str, hosts: list[bytes]) -> bool:
        """Whether a page of that origin comes from the server: from the scheme, host and port to which the request
        was sent, or from `public_url` before a proxy that changes those."""
        found = normal_origin(origin)
        if found is None:
            return False
        return found == self._public_origin or (
            len(hosts) == 1 and found == normal_origin(f"{scheme}://{hosts[0].decode('latin-1')}")
        )


class OriginCheck:
    """ASGI middleware: refuses requests for other hosts and from foreign pages, and lets the pages of
    `cors.allow_origins` read the responses. Neither a body is read nor a token checked before that."""

    def __init__(self, app: ASGIApp, rules: OriginRules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or respond with 421, 403, or to a preflight with 204."""
        if scope["type"] == "websocket":  # there is no such route, and its handshake would escape these rules
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        hosts: list[bytes] = []
        origins: list[bytes] = []
        sites: list[bytes] = []
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value)
            elif name == b"origin":
                origins.append(value)
            elif name == b"sec-fetch-site":
                sites.append(value)
        try:
            allowed = self._allowed_origin(scope, hosts, origins, sites)
            response_headers = self._rules.cors.response_headers(allowed)
            scope["state"]["response_headers"].extend(response_headers)
            self._rules.check_host(hosts, scope["http_version"])
        except WorkerError as exc:
            await error_response(exc)(scope, receive, send)
            return
        if allowed is not None and scope["method"] == "OPTIONS":
            request_headers = dict(scope["headers"])
            if b"access-control-request-method" in request_headers:
                headers = self._rules.cors.preflight_headers(request_headers)
                await send({"type": "http.response.start", "status": 204, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
                return
        await self._app(scope, receive, send)

    def _allowed_origin(
        self, scope: Scope, hosts: list[bytes], origins: list[bytes], sites: list[bytes]
    ) -> bytes | None:
        """The foreign origin of the request if it may send it; None if the request is of no foreign page. Raises
        `OriginNotAllowed`."""
        if not origins and not sites:
            return None
        cors = self._rules.cors
        if len(origins) == 1:
            origin = origins[0].decode("latin-1")
            is_own = self._rules.is_own(origin, scope["scheme"], hosts)
            if not is_own and cors.allows(origin):
                return origins[0]
        else:
            is_own = not origins
        if is_own and (cors.allows_any or all(site.lower() in _OWN_SITES for site in sites)):
            return None
        if scope["method"] in _PAGE_METHODS and get_route_path(scope) in PAGES:
            return None
        raise OriginNotAllowed(
            "the request comes from a web page of another origin; list that origin in cors.allow_origins to allow it"
        )
