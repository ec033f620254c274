"""The ingress's end of a connection to one replica.

What is said is told in `rbee_serve.transport.request_messages`.
"""

from __future__ import annotations

from collections.abc import Callable

from rbee_serve.result import JSON
from rbee_serve.transport.acceptor import Endpoint, connect
from rbee_serve.transport.framing import FramedConnection
from rbee_serve.transport.request_messages import (
    Chunk,
    FromReplica,
    GoAway,
    RequestAck,
    ResetStream,
    StartRequest,
    WindowUpdate,
)
from rbee_serve.transport.response_stream import ResponseStream


class RequestClient:
    """Carries all requests to a replica, and their answers back."""

    def __init__(self, on_message: Callable[[], None]) -> None:
        """`on_message` is called for whatever the replica says."""
        self._wire: FramedConnection[FromReplica] = FramedConnection(FromReplica, self._receive, self._lost)
        self._on_message = on_message
        self._answers: dict[int, ResponseStream] = {}
        self.usable = True
        """Whether the replica takes new requests, as far as is known."""

    async def open(self, place: Endpoint) -> None:
        """Connect, and show the key. Raises `OSError`."""
        await connect(place, self._wire)

    def ask(self, answer: ResponseStream, request: StartRequest) -> None:
        """Send a request."""
        if not self.usable:
            answer.fail(ConnectionError("the replica is gone"))
            return
        number = request.number  # what is kept for a long answer is this, and not what the request carries
        self._answers[number] = answer
        answer.connect(
            leave=lambda: self._leave(number), note_read=lambda size: self._wire.send(WindowUpdate(number, size))
        )
        self._wire.send(request)

    def _leave(self, number: int) -> None:
        if self._answers.pop(number, None) is not None:
            self._wire.send(ResetStream(number))

    def _receive(self, message: FromReplica) -> None:
        self._on_message()
        match message:
            case Chunk(number, data, last, media_type):
                if answer := self._answers.get(number):
                    if last:
                        del self._answers[number]
                    answer.put(data, last, media_type or JSON)
            case RequestAck(number):
                if answer := self._answers.get(number):
                    answer.acknowledge()
            case GoAway():
                self.usable = False

    def _lost(self) -> None:
        self.usable = False
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            answer.fail(ConnectionError("the connection broke"))
