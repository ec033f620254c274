"""What comes back for one request, as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rbee_serve.result import JSON
from rbee_serve.transport.request_messages import WINDOW_BYTES


class ResponseStream:
    """Filled by whoever hears the replica, emptied by whoever serves the client. It is to be closed, whatever comes of
    it."""

    def __init__(self) -> None:
        self.complete = False
        """Whether the last fragment has come; or the border has broken before."""
        self.closed = False
        self.media_type = JSON
        """The content type, if it is a document."""
        self.acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when a replica has noted the request; fails if the border breaks before."""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when nothing more can come, or is wanted."""
        self._leave: Callable[[], None] = lambda: None
        self._note_read: Callable[[int], None] = lambda size: None
        self._data: list[bytes] = []
        self._failure: Exception | None = None
        self._news: asyncio.Future[None] | None = None
        self._taken = 0

    def connect(self, leave: Callable[[], None], note_read: Callable[[int], None]) -> None:
        """The request is on its way: `leave` tells the replica that it is not wanted any more, `note_read` how many
        bytes the client has taken."""
        self._leave = leave
        self._note_read = note_read

    def acknowledge(self) -> None:
        """A replica has noted the request."""
        if not self.acknowledged.done():
            self.acknowledged.set_result(None)

    def put(self, data: bytes, terminal: bool, media_type: str = JSON) -> None:
        """Add a fragment."""
        self.acknowledge()
        self._data.append(data)
        if terminal:
            self.media_type = media_type
            self._end()
        self._wake()

    def fail(self, reason: Exception) -> None:
        """The border has broken: nothing more comes. Does nothing if the answer is complete."""
        if self.complete:
            return
        self._failure = reason
        if not self.acknowledged.done():
            self.acknowledged.set_exception(reason)
            self.acknowledged.exception()  # looked at, should nobody wait for it any more
        self._end()
        self._wake()

    async def next(self) -> tuple[bytes, bool]:
        """All that has come since the last time, and whether the end is among it; waits for something.

        Raises what broke the border, once everything before it has been taken.
        """
        if self._taken > WINDOW_BYTES // 2 and not self.complete:
            self._note_read(self._taken)
            self._taken = 0
        while not self._data:
            if self._failure is not None:
                raise self._failure
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        data = b"".join(self._data)
        self._data.clear()
        self._taken += len(data)
        return data, self.complete and self._failure is None

    def close(self) -> None:
        """Stop the work, if it is not complete."""
        if self.closed:
            return
        self.closed = True
        if not self.complete:
            self._leave()
            self._end_over()

    def _end(self) -> None:
        self.complete = True
        self._end_over()

    def _end_over(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
