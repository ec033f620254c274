"""What counts as a line of code: every physical line that holds code, so no blank line, no comment, no docstring.

A statement over several lines counts with all of them, and all of them as executed when one is.
"""

from __future__ import annotations

import io
import tokenize
from collections.abc import Collection, Iterator

_LAYOUT = frozenset(
    [tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER]
)
_WITHOUT_BYTECODE = frozenset({"else", "finally", "try"})


def count(source: str) -> int:
    """How many lines of code `source` has."""
    return sum(len(lines) for lines, _ in _statements(source))


def count_executed(source: str, traced: Collection[int]) -> int:
    """How many lines of code were executed, where `traced` are the numbers of the lines that Python stepped on."""
    total = 0
    following = False
    for lines, first_word in reversed(list(_statements(source))):
        # Python never steps on a line that is only `else:`. It goes with what comes after it.
        following = following if first_word in _WITHOUT_BYTECODE else not lines.isdisjoint(traced)
        total += len(lines) if following else 0
    return total


def _statements(source: str) -> Iterator[tuple[set[int], str]]:
    """The lines of code of each statement, or of the head of one that has a body, and its first word."""
    lines: set[int] = set()
    words: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NEWLINE:
            if any(word.type != tokenize.STRING for word in words):  # else it is a docstring
                yield lines, words[0].string
            lines, words = set(), []
        elif token.type not in _LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
            words.append(token)
