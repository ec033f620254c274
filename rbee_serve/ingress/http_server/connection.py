"""One connection of a client: its requests in order, and the time that it may take.

There is no timer per connection: a sweep calls `check` on each of them.

Input that breaks a rule gets one response, and what still arrives is discarded for a moment: closing at once would
reset the connection, and the client would lose the response.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from rbee_serve.errors import InvalidRequest, WorkerError
from rbee_serve.ingress.http_server.exchange import ClosingTransport, Flow, Http10Exchange
from rbee_serve.ingress.http_server.input import Input
from rbee_serve.ingress.http_server.parsing import Refused
from rbee_serve.ingress.http_server.refusal import response
from rbee_serve.ingress.http_server.shared import Shared

MAX_PIPELINED = 8
"""Requests that wait for the response to an earlier one. The client sends the rest again, as RFC 9112 9.3.2 asks."""


class Connection(Input):
    """Serves the requests of one connection, one after another. `release` is called when it is lost."""

    flow: Flow
    _output: ClosingTransport

    def __init__(self, config: Config, shared: Shared, surplus: bool, release: Callable[[Connection], None]) -> None:
        super().__init__(config, shared, surplus)
        self._release = release
        self._running: RequestResponseCycle | None = None
        self._served = False

    # The transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection is open, the TLS handshake done."""
        super().connection_made(transport)
        self.flow = Flow(transport)
        self._output = ClosingTransport(transport, self._close_after_response)
        self._timer.begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed: every open request is notified."""
        self.connections.discard(self)
        for cycle in self._open_cycles():
            cycle.disconnected = True
            cycle.message_event.set()
        self.pipeline.clear()
        self.flow.resume_writing()
        self._discards_input = True
        self.parser = None  # type: ignore[assignment]
        self._release(self)

    def resume_writing(self) -> None:
        """The client has taken what was sent."""
        self._timer.output_taken()
        super().resume_writing()

    # Requests

    def _cycle(self, version: str) -> RequestResponseCycle:
        keep_alive = self.parser.should_keep_alive() and not self._surplus and not self._shared.stopping
        return (Http10Exchange if version == "1.0" else RequestResponseCycle)(
            scope=self.scope,
            transport=cast(asyncio.Transport, self._output),
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

    def _begin(self, version: str) -> None:
        cycle = self._cycle(version)
        if self._running is None:
            self.cycle = self._running = cycle
            self._start_asgi_task(cycle, self.app)
            return
        if len(self.pipeline) == MAX_PIPELINED or not self.cycle.keep_alive:
            raise Refused(
                InvalidRequest("too many requests wait for their responses on this connection; read some first")
            )
        self.cycle = cycle
        self.flow.held = True
        self.flow.pause_reading()
        self.pipeline.appendleft((cycle, self.app))

    # The response

    def on_response_complete(self) -> None:
        """Continue with the next request, if it is here already."""
        self.server_state.total_requests += 1
        self._served, self._running = True, None
        if self.transport.is_closing() or self._timer.ending:
            return
        self._timer.begin()
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
        if self._discards_input:
            return
        self._discards_input = True
        self._shared.refusals.count(error.code)
        running = self._running
        if running is not None and (self.pipeline or running.response_started or not running.more_body):
            self.cycle.keep_alive = False
            return
        if running is not None:  # its own body is at fault
            running.disconnected = True
            running.message_event.set()
        given = self.headers or []
        more = [*headers, *self._shared.cors.refusal_headers(given)]
        self.transport.write(response(error, given, self.server_state.default_headers, *more))
        self._linger()

    def _close_after_response(self) -> None:
        if self._count.in_head and not self._discards_input:
            self.transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        self._discards_input = True
        self._timer.end()
        self.flow.held = False
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    # The sweep and the end

    def check(self) -> None:
        """Close the connection if its time is over."""
        limits, timer = self._shared.limits, self._timer
        busy = self._running is not None and not timer.ending
        if timer.stalled(self.transport.get_write_buffer_size(), only_idle=busy and not self.flow.write_paused):
            self.transport.abort()
        elif busy or self.transport.is_closing():
            return
        elif timer.ending or not self._count.in_head:
            if timer.lingered():
                self.transport.abort()
        elif not self._between:
            if timer.over(limits.header_timeout_s):
                self._refuse(self._shared.header_timeout())
        elif timer.over(self._shared.keep_alive_s() if self._served else limits.header_timeout_s):
            self.transport.close()

    def shutdown(self) -> None:
        """Close the connection, or have it closed after its open request."""
        if self._running is None:
            self.transport.close()
        else:
            self.cycle.keep_alive = False
