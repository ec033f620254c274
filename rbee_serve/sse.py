"""Server-sent events: the only module that knows `data:`.

The encoder is three constants and a function. The decoder follows the WHATWG specification (section 9.2.6): lines end
with CR, LF or CRLF, several `data` lines make one event, comments and other fields are skipped, and an incomplete
event at the end of the stream is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MEDIA_TYPE = "text/event-stream"
MARKER = b"[DONE]"
"""The data of the last frame of a stream."""
DONE = b"data: " + MARKER + b"\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
MAX_EVENT_BYTES = 64 * 1024 * 1024
"""An image of 2048 x 2048 pixels as PNG in base64 takes at most 17 MB; this is four times as much."""

_UNICODE_LINE_END = re.compile(b"\xe2\x80[\xa8\xa9]|\xc2\x85")
"""U+2028, U+2029 and U+0085, which JSON leaves as they are within strings."""
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventTooLarge(ValueError):
    """An event, or a line of one, exceeds the limit of the decoder."""


def frame(json: bytes) -> bytes:
    """One event. `json` is on one line, as `events.to_json` returns it: JSON escapes CR, LF and every other control
    character within strings.

    The line ends of Unicode are escaped here. They end no line of SSE, but they do for readers that split text as
    Python's `str.splitlines` does, such as `iter_lines` of httpx.
    """
    if not json.isascii() and (0xE2 in json or 0xC2 in json) and _UNICODE_LINE_END.search(json):
        json = _UNICODE_LINE_END.sub(_escaped, json)
    return b"data: " + json + b"\n\n"


def _escaped(match: re.Match[bytes]) -> bytes:
    return b"\\u%04x" % ord(match[0].decode())


class Decoder:
    """Splits a stream of bytes into events, for any chunk boundaries.

    It works on bytes: no byte of a multi-byte UTF-8 character equals a line end.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._buffer = bytearray()
        self._scanned = 0
        self._data: list[bytes] = []
        self._size = 0
        self._at_start = True
        self._after_cr = False

    @property
    def mid_event(self) -> bool:
        """Whether the stream would be incomplete if it ended here, within an event or a line."""
        return bool(self._data or self._buffer)

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of each event that `chunk` completes. Raises `EventTooLarge`.

        `chunk` is consumed at once; events that are not read here are returned by the next call.
        """
        self._buffer += chunk
        return self._events()

    def _events(self) -> Iterator[bytes]:
        while (line := self._next_line()) is not None:
            if line:
                self._take(line)
            elif self._data:
                event = b"\n".join(self._data)
                self._data, self._size = [], 0
                yield event

    def _next_line(self) -> bytes | None:
        buffer = self._buffer
        if self._at_start:
            if len(buffer) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(buffer):
                return None
            self._at_start = False
            if buffer.startswith(_BYTE_ORDER_MARK):
                del buffer[: len(_BYTE_ORDER_MARK)]
        if self._after_cr and buffer:
            # The CR ended its line at once: a LF after it may never arrive.
            self._after_cr = False
            if buffer[0] == 0x0A:
                del buffer[0]
        end = _LINE_END.search(buffer, self._scanned)
        if end is None:
            self._scanned = len(buffer)
            self._check(len(buffer))
            return None
        start, stop = end.span()
        self._check(start)
        self._after_cr = stop == len(buffer) and buffer[start] == 0x0D and stop - start == 1
        line = bytes(buffer[:start])
        del buffer[:stop]
        self._scanned = 0
        return line

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(line)

    def _check(self, line_bytes: int) -> None:
        if self._size + line_bytes > self._max:
            raise EventTooLarge(f"an event is larger than {self._max} bytes")
