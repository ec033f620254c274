"""The ingress's end of a connection to one replica. See `rbee_serve.transport.request_messages`."""

from __future__ import annotations

import logging

from rbee_serve.errors import InternalError, InvalidRequest, WorkerError
from rbee_serve.result import JSON
from rbee_serve.transport.client_connection import ClientConnection
from rbee_serve.transport.framing import encoded
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

logger = logging.getLogger(__name__)


class RequestClient(ClientConnection[FromReplica, ResponseStream]):
    """Carries all requests to a replica, and their responses back."""

    message_types = FromReplica

    def start(self, response: ResponseStream, request: StartRequest) -> None:
        """Send a request. `response` fails if that is impossible."""
        if not self.usable:
            response.fail(ConnectionError("the replica is gone"))
            return
        try:
            message = encoded(request)
        except Exception as exc:
            response.fail(_not_encodable(exc))
            return
        stream_id = request.stream_id  # the callbacks hold this only, and not the request with its fields
        self.pending[stream_id] = response
        response.attach(
            reset=lambda: self._reset(stream_id),
            update_window=lambda size: self._connection.send(WindowUpdate(stream_id, size)),
        )
        self._connection.send_encoded(message)

    def _reset(self, stream_id: int) -> None:
        if self.pending.pop(stream_id, None) is not None:
            self._connection.send(ResetStream(stream_id))

    def _receive(self, message: FromReplica) -> None:
        match message:
            case Chunk(stream_id, data, end_of_stream, media_type):
                if response := self.pending.get(stream_id):
                    if end_of_stream:
                        del self.pending[stream_id]
                    response.put(data, end_of_stream, media_type or JSON)
            case RequestAck(stream_id):
                if response := self.pending.get(stream_id):
                    response.acknowledge()
            case GoAway():
                self.usable = False

    def _fail(self, pending: ResponseStream, error: ConnectionError) -> None:
        pending.fail(error)


def _not_encodable(error: Exception) -> WorkerError:
    """The client's error for a request that MessagePack cannot carry."""
    match error:
        case OverflowError():
            return InvalidRequest.of_field("body", "64 bits", "holds an integer that does not fit into 64 bits")
        case UnicodeEncodeError():
            return InvalidRequest.of_field("body", "unicode", "holds text that is not valid Unicode (a lone surrogate)")
        case _:
            logger.error("a request cannot be sent to its worker: %s; give its fields JSON types", error)
            return InternalError("the server failed on this request; its log has the details")
