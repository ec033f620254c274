"""Counts what a client sends beside content, before it is kept."""

from __future__ import annotations


class InputCount:
    """Bytes of the head of a request, and of the framing of its body: chunk sizes, chunk extensions and trailers.

    The framing may be as large as a head, and beyond that as the content that it comes with. A piece of input in which
    a head or a body ends is not counted, as the parser does not report its position. So a head that follows a
    body at once may be larger by a piece.
    """

    __slots__ = ("_content", "_ended", "_framing", "_framing_alone", "_head", "_max", "_piece_content", "in_head")

    def __init__(self, max_header_bytes: int) -> None:
        self._max = max_header_bytes
        self._head = self._content = self._piece_content = self._framing = self._framing_alone = 0
        self._ended = False
        self.in_head = True
        """Whether what comes next belongs to a head, and not to a body."""

    @property
    def head_bytes_left(self) -> int:
        """Bytes that the head may still have."""
        return self._max - self._head

    def end_head(self) -> None:
        """A body comes next, though it may be empty."""
        self.in_head, self._ended = False, True
        self._content = self._piece_content = self._framing = self._framing_alone = 0

    def end_body(self) -> None:
        """The head of the next request comes next."""
        self.in_head, self._ended = True, True
        self._head = 0

    def add_content(self, size: int) -> None:
        """Bytes of the current piece that the parser has found to be content."""
        self._piece_content += size

    def add_piece(self, size: int) -> bool:
        """Count a piece of input after it was parsed; whether the framing of the body is still within the bounds."""
        content, self._piece_content = self._piece_content, 0
        self._content += content
        if self._ended:
            self._ended = False
        elif self.in_head:
            self._head += size
        else:
            self._framing += size - content
            self._framing_alone = 0 if content else self._framing_alone + size
        return self._framing <= self._max + self._content and self._framing_alone <= self._max
