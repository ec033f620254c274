"""The response to one request, in the ingress: a buffer between the connection and the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rbee_serve.result import JSON
from rbee_serve.transport.request_messages import WINDOW_BYTES


class ResponseStream:
    """Filled by the connection, emptied for the client. To be closed, however it ends."""

    def __init__(self) -> None:
        self.complete = False
        """Whether the last chunk is here, or the stream has failed."""
        self.closed = False
        self.media_type = JSON
        """The content type, if the response is a document."""
        self.acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when a replica has received the request; fails if the stream fails before."""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the stream is complete or closed."""
        self._reset: Callable[[], None] = lambda: None
        self._update_window: Callable[[int], None] = lambda size: None
        self._chunks: list[bytes] = []
        self._failure: Exception | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._taken = 0

    def attach(self, reset: Callable[[], None], update_window: Callable[[int], None]) -> None:
        """Use these callbacks from now on: `reset` cancels the request, `update_window` reports bytes that the client
        has taken."""
        self._reset = reset
        self._update_window = update_window

    def acknowledge(self) -> None:
        """A replica has received the request."""
        if not self.acknowledged.done():
            self.acknowledged.set_result(None)

    def put(self, data: bytes, end_of_stream: bool, media_type: str = JSON) -> None:
        """Add a chunk."""
        self.acknowledge()
        self._chunks.append(data)
        if end_of_stream:
            self.media_type = media_type
            self._complete()
        self._wake()

    def fail(self, error: Exception) -> None:
        """End the stream with `error`. Does nothing if it is complete."""
        if self.complete:
            return
        self._failure = error
        if not self.acknowledged.done():
            self.acknowledged.set_exception(error)
            self.acknowledged.exception()  # marked as retrieved, in case that nothing waits for it any more
        self._complete()
        self._wake()

    async def next(self) -> tuple[bytes, bool]:
        """All data since the last call, and whether it ends the stream; waits until there is some.

        Raises the error of `fail` after all data before it.
        """
        if self._taken > WINDOW_BYTES // 2 and not self.complete:
            self._update_window(self._taken)
            self._taken = 0
        while not self._chunks:
            if self._failure is not None:
                raise self._failure
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._taken += len(data)
        return data, self.complete and self._failure is None

    def close(self) -> None:
        """Cancel the request if it is not complete."""
        if self.closed:
            return
        self.closed = True
        if not self.complete:
            self._reset()
            self._set_over()

    def abort(self, error: Exception) -> None:
        """Cancel the request and end the stream with `error`, if it is not complete."""
        self.close()
        self.fail(error)

    def _complete(self) -> None:
        self.complete = True
        self._set_over()

    def _set_over(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
