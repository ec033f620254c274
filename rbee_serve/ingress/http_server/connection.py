"""One connection of a client.

uvicorn's protocol, with what it leaves open: bounds on the bytes of a request's head and of the framing of its body,
counted before they are kept; on the requests that are sent ahead of their responses; and on the time for all of that.
There is no timer per connection: a sweep calls `check` on each of them.

Input that breaks a rule gets one response, and what still arrives is discarded for a moment: closing at once would
reset the connection, and the client would lose the response.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import cast
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from rbee_serve.errors import HeadersTooLarge, InsufficientResources, InvalidRequest, MethodNotAllowed, WorkerError
from rbee_serve.ingress.http_server.exchange import ClosingTransport, Flow, Http10Exchange
from rbee_serve.ingress.http_server.pace import Pace
from rbee_serve.ingress.http_server.parsing import Refused, error_of, next_parser, without_upgrade
from rbee_serve.ingress.http_server.refusal import response
from rbee_serve.ingress.http_server.shared import Shared

MAX_HEADERS = 256
"""Headers of a request. Each takes more memory than its bytes; Apache allows 100."""
MAX_PIPELINED = 8
"""Requests that wait for the response to an earlier one. The client sends the rest again, as RFC 9112 9.3.2 asks."""
_SLICE = 16 * 1024


class Connection(HttpToolsProtocol):
    """Serves the requests of one connection. A `surplus` one is over the bound on connections: it gets a refusal, or
    the health of the ingress."""

    flow: Flow

    def __init__(self, config: Config, shared: Shared, surplus: bool, release: Callable[[Connection], None]) -> None:
        super().__init__(config, shared.state, {}, shared.loop)
        self._shared = shared
        self._release = release
        self._pace = Pace(shared.clock, surplus)
        self._surplus = surplus
        self._in_head = self._between = True  # between: no byte of the next request has come
        self._head_bytes = 0
        self._body_bytes = self._framing_bytes = self._idle_framing_bytes = 0
        self._running: RequestResponseCycle | None = None
        self._deaf = False
        self._served = False

    # The transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = Flow(transport)
        self._pace.begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        for cycle in self._open_cycles():
            cycle.disconnected = True
            cycle.message_event.set()
        self.pipeline.clear()
        self.flow.resume_writing()
        self._deaf = True
        self.parser = None  # type: ignore[assignment]
        self._release(self)

    def resume_writing(self) -> None:
        self._pace.writes()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if len(data) <= _SLICE and not (self._in_head and len(data) > self._room()):
            self._feed(data)
            return
        view = memoryview(data)
        while view and not self._deaf:
            size = min(_SLICE, self._room()) if self._in_head else _SLICE
            if not size:
                self._refuse(HeadersTooLarge(self._shared.too_large))
                return
            self._feed(view[:size])
            view = view[size:]

    def _room(self) -> int:
        return self._shared.limits.max_header_bytes - self._head_bytes

    def _feed(self, data: bytes | memoryview) -> None:
        if self._deaf:
            return
        in_head, body_bytes = self._in_head, self._body_bytes
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._continue_without_upgrade(data, int(upgrade.args[0]))
        except httptools.HttpParserError as exc:
            self._refuse(error_of(exc))
        else:
            if self._in_head:
                self._head_bytes += len(data)  # counts the end of an earlier body too: a slice at most
            elif not in_head:
                self._count_framing(len(data), self._body_bytes - body_bytes)

    def _count_framing(self, size: int, content: int) -> None:
        """Chunk sizes, chunk extensions and trailers: bounded beside content, and where no content comes."""
        self._framing_bytes += size - content
        self._idle_framing_bytes = 0 if content else self._idle_framing_bytes + size
        allowed = self._shared.limits.max_header_bytes
        if self._framing_bytes > allowed + self._body_bytes or self._idle_framing_bytes > allowed:
            self._refuse(InvalidRequest("the body has more framing than content; send larger chunks and no trailers"))

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
            self._feed(head)
            self.data_received(bytes(data[offset:]))

    # The parser

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._between, self._head_bytes = False, 0
        self._pace.begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer
        if len(self.headers) >= MAX_HEADERS:
            raise Refused(HeadersTooLarge(f"the request has more than {MAX_HEADERS} headers; send fewer"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._body_bytes = self._framing_bytes = self._idle_framing_bytes = 0
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
        self._begin(self._cycle(version))

    def _cycle(self, version: str) -> RequestResponseCycle:
        keep_alive = self.parser.should_keep_alive() and not self._surplus and not self._shared.stopping
        last = version == "1.0" or not keep_alive
        transport = ClosingTransport(self.transport, self._close_after_response) if last else self.transport
        return (Http10Exchange if version == "1.0" else RequestResponseCycle)(
            scope=self.scope,
            transport=cast(asyncio.Transport, transport),
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue and version == "1.1",
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )

    def _begin(self, cycle: RequestResponseCycle) -> None:
        if self._running is None:
            self.cycle = self._running = cycle
            self._start_asgi_task(cycle, self.app)
            return
        if len(self.pipeline) == MAX_PIPELINED or not self.cycle.keep_alive:
            raise Refused(InvalidRequest("too many requests at once"))
        self.cycle = cycle
        self.flow.held = True
        self.flow.pause_reading()
        self.pipeline.appendleft((cycle, self.app))

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_head = self._between = True
        self._head_bytes = 0
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()

    # The response

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._served, self._running = True, None
        if self.transport.is_closing() or (self._deaf and not self.pipeline):
            return
        self._pace.begin()
        if self.pipeline:
            self._running, app = self.pipeline.pop()
            self._start_asgi_task(self._running, app)
        if not self.pipeline:
            self.flow.held = False
            self.flow.resume_reading()

    def _open_cycles(self) -> Iterator[RequestResponseCycle]:
        if self._running is not None:
            yield self._running
        yield from (cycle for cycle, _ in self.pipeline)

    def _refuse(self, error: WorkerError, *headers: tuple[bytes, bytes]) -> None:
        """Respond with the error, unless an earlier response has to come first: then close after that."""
        if self._deaf:
            return
        self._deaf = True
        self._shared.refusals.count(error.code)
        if self._running is not None and (self.pipeline or self._running.response_started or self._in_head):
            self.cycle.keep_alive = False
            return
        if self._running is not None:  # its own body is at fault
            self._running.disconnected = True
            self._running.message_event.set()
        self.transport.write(response(error, self.headers or (), self.server_state.default_headers, *headers))
        self._linger()

    def _close_after_response(self) -> None:
        if self._in_head:
            self.transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        self._deaf = True
        self._pace.end()
        self.flow.held = False
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    # The sweep and the end

    def check(self) -> None:
        """Close the connection if its time is over."""
        limits, pace = self._shared.limits, self._pace
        busy = self._running is not None and not pace.ending
        if pace.stalled(self.transport.get_write_buffer_size(), only_idle=busy and not self.flow.write_paused):
            self.transport.abort()
        elif busy or self.transport.is_closing():
            return
        elif pace.ending or not self._in_head:
            if pace.lingered():
                self.transport.abort()
        elif not self._between:
            if pace.over(limits.header_timeout_s):
                self._refuse(self._shared.header_timeout())
        elif pace.over(self._shared.keep_alive_s() if self._served else limits.header_timeout_s):
            self.transport.close()

    def shutdown(self) -> None:
        """Close the connection, or have it closed after its open request."""
        if self._running is None:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def timeout_keep_alive_handler(self) -> None:
        raise AssertionError("the sweep closes idle connections")

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest(msg))
