"""The input of a connection: from its bytes to requests, within bounds.

uvicorn's protocol keeps what its parser reports, however much that is. Here the bytes of a request's head and of the
framing of its body are counted before they are kept.
"""

from __future__ import annotations

from abc import abstractmethod
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rbee_serve.errors import HeadersTooLarge, InsufficientResources, InvalidRequest, MethodNotAllowed, WorkerError
from rbee_serve.ingress.http_server.connection_timer import ConnectionTimer
from rbee_serve.ingress.http_server.input_count import InputCount
from rbee_serve.ingress.http_server.parsing import Refused, error_of, next_parser, without_upgrade
from rbee_serve.ingress.http_server.shared import Shared

MAX_HEADERS = 256
"""Headers of a request. Each takes more memory than its bytes; Apache allows 100."""
_SLICE = 16 * 1024


class Input(HttpToolsProtocol):
    """Parses the input and calls `_begin` for each request, `_refuse` for a fault. A `surplus` connection is over the
    bound on connections: its request is refused, unless it is for the health of the ingress."""

    def __init__(self, config: Config, shared: Shared, surplus: bool) -> None:
        super().__init__(config, shared.state, {}, shared.loop)
        self._shared = shared
        self._surplus = surplus
        self._timer = ConnectionTimer(shared.clock, surplus)
        self._count = InputCount(shared.limits.max_header_bytes)
        self._between = True  # no byte of the next request has come
        self._discards_input = False  # what still comes is discarded

    @abstractmethod
    def _begin(self, version: str) -> None:
        """Begin the request of `scope`, or queue it. May raise `Refused`."""

    @abstractmethod
    def _refuse(self, error: WorkerError, *headers: tuple[bytes, bytes]) -> None:
        """Respond with the error and discard what still comes."""

    def data_received(self, data: bytes) -> None:
        """Parse a piece of input, in slices that are not larger than the head may still be."""
        if len(data) <= _SLICE and not (self._count.in_head and len(data) > self._count.head_bytes_left):
            self._feed(data)
            return
        view = memoryview(data)
        while view and not self._discards_input:
            size = min(_SLICE, self._count.head_bytes_left) if self._count.in_head else _SLICE
            if not size:
                self._refuse(HeadersTooLarge(self._shared.too_large))
                return
            self._feed(view[:size])
            view = view[size:]

    def _feed(self, data: bytes | memoryview) -> None:
        if self._discards_input:
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._continue_without_upgrade(data, int(upgrade.args[0]))
        except httptools.HttpParserError as exc:
            self._refuse(error_of(exc))
        else:
            if not self._count.add_piece(len(data)):
                self._refuse(InvalidRequest("the body has more framing than content; send larger chunks"))

    def _continue_without_upgrade(self, data: bytes | memoryview, offset: int) -> None:
        """A server may ignore `Upgrade` (RFC 9110 7.8); the parser would drop the body of such a request."""
        upgrade = self._get_upgrade()
        if self.parser.get_method() == b"CONNECT":
            self._refuse(MethodNotAllowed("this server is no proxy; use GET or POST"), (b"allow", b"GET, POST"))
        elif upgrade == b"websocket":
            self._refuse(InvalidRequest("this server has no WebSocket; send a POST, whose response is a stream"))
        else:
            head = without_upgrade(self.parser, self.url, self.headers)
            self.parser = next_parser(self)
            self._count.end_body()  # the same head comes again
            self._feed(head)
            self.data_received(bytes(data[offset:]))

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._between = False
        self._timer.begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which nothing reads."""
        if not self._count.in_head:
            return
        if len(self.headers) >= MAX_HEADERS:
            raise Refused(HeadersTooLarge(f"the request has more than {MAX_HEADERS} headers; send fewer"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin the request. A fault is raised, which stops the parser."""
        self._count.end_head()
        version = self.parser.get_http_version()
        if version != "1.1" and version != "1.0":
            raise Refused(error_of(None))
        if self.parser.should_upgrade():
            return
        self.scope["http_version"] = version
        self.scope["method"] = self.parser.get_method().decode("ascii")
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        self.scope["path"] = self.root_path + (unquote(path) if "%" in path else path)
        self.scope["raw_path"] = self.root_path.encode("ascii") + url.path
        self.scope["query_string"] = url.query or b""
        if self._surplus and path != "/health":
            raise Refused(InsufficientResources(self._shared.too_many))
        self._begin(version)

    def on_body(self, body: bytes) -> None:
        """A piece of content."""
        self._count.add_content(len(body))
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The last byte of a request."""
        if self.parser.should_upgrade():
            return
        self._count.end_body()
        self._between = True
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()
