"""Counts what a client sends beside content, before it is kept."""

from __future__ import annotations


class InputCount:
    """Bytes of the head of a request, and of the framing of its body: chunk sizes, chunk extensions and trailers.

    The framing may be as large as a head, and beyond that as the content that it comes with.
    """

    __slots__ = ("_content", "_framing", "_framing_alone", "_head", "_max", "in_head")

    def __init__(self, max_header_bytes: int) -> None:
        self._max = max_header_bytes
        self._head = self._content = self._framing = self._framing_alone = 0
        self.in_head = True
        """Whether what comes next belongs to a head, and not to a body."""

    @property
    def head_bytes_left(self) -> int:
        """Bytes that the head may still have."""
        return self._max - self._head

    @property
    def content(self) -> int:
        """Bytes of the content of this body."""
        return self._content

    def begin_head(self) -> None:
        """The parser is before or at the first byte of a request."""
        self.in_head, self._head = True, 0

    def begin_body(self) -> None:
        """The head is complete."""
        self.in_head = False
        self._head = self._content = self._framing = self._framing_alone = 0

    def add_content(self, size: int) -> None:
        """Bytes that the parser has found to be content."""
        self._content += size

    def add_head(self, size: int) -> None:
        """Bytes of a head. The last ones of an earlier body may be among them."""
        self._head += size

    def add_body(self, size: int, content: int) -> bool:
        """Bytes of a body and how many of them are content; whether its framing is still within the bounds."""
        self._framing += size - content
        self._framing_alone = 0 if content else self._framing_alone + size
        return self._framing <= self._max + self._content and self._framing_alone <= self._max
