"""Chats as tokens, by the model's own template, in which nobody but the template speaks the model's control tokens.

A tokenizer takes `<|im_end|>` in a user's text for the token of that name, so a text could end its own message and
begin one of the system's; `<image>` would be a picture that nobody sent. Such names are read as the letters that they
are. So are the names of tokens that the template writes for a picture or a recording, whether or not the tokenizer
calls them special. Other tokens that were added, such as `<think>` or a run of blanks, stay tokens: models are taught
with them in texts, and templates look for them in an assistant's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal

from rbee_serve.errors import InvalidRequest

Role = Literal["system", "user", "assistant", "tool"]
"""Who speaks in a chat."""

_PRIVATE = range(0xE000, 0xF900)
"""Characters that mean nothing to anybody (Unicode's private use area)."""
_NEVER = "(?!)"


class ChatTokenizer:
    """A tokenizer of transformers and its chat template. Used from any thread."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        names = sorted(special | self._places())
        longest_first = sorted(names, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or _NEVER)
        self._beginnings = re.compile("|".join(sorted({re.escape(name[0]) for name in names})) or _NEVER)
        self._literal = _literal(tokenizer.backend_tokenizer, set(names))

    def tokens(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """The chat, to the place where the model is to answer. `content` of a message is a text, or a list of parts
        such as `{"type": "text", "text": …}`.

        Raises `InvalidRequest` where the model has no template, or its template refuses this chat.
        """
        texts = [text for message in messages for text in _texts(message)]
        if not self._control.search("".join(texts)):
            return list(self._tokenizer.encode(self._rendered(messages), add_special_tokens=False))
        # No control token can come about where each of its beginnings is followed by a mark.
        mark = next(character for character in map(chr, _PRIVATE) if not any(character in text for text in texts))
        marked = [_changed(message, lambda text: self._beginnings.sub(rf"\g<0>{mark}", text)) for message in messages]
        return self._read(self._rendered(marked), mark)

    def _places(self) -> set[str]:
        """Names of the added tokens that come with a picture or a recording in a chat, and not without."""
        found: set[int] = set()
        for kind in ("image", "audio"):
            with suppress(InvalidRequest):  # no template, or one that does not know this kind
                found |= self._words({"type": kind}) - self._words()
        added = self._tokenizer.added_tokens_decoder
        return {added[token].content for token in found if token in added and added[token].content.strip()}

    def _words(self, *parts: dict[str, Any]) -> set[int]:
        text = self._rendered([{"role": "user", "content": [*parts, {"type": "text", "text": "x"}]}])
        return set(self._tokenizer.encode(text, add_special_tokens=False))

    def _rendered(self, messages: Sequence[dict[str, Any]]) -> str:
        if self._tokenizer.chat_template is None:
            raise InvalidRequest.of_field("messages", "chat template", "this model has none; use prompt instead")
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception as exc:  # a template refuses a chat, such as two user turns in a row, by raising anything
            raise InvalidRequest.of_field(
                "messages", "chat template", "the model's template refuses this chat"
            ) from exc

    def _read(self, text: str, mark: str) -> list[int]:
        """Tokens of the template's control tokens and, without marks, of the text between them."""
        found, end = [], 0
        for match in self._control.finditer(text):
            found += self._letters(text[end : match.start()].replace(mark, ""))
            found.append(int(self._tokenizer.convert_tokens_to_ids(match[0])))
            end = match.end()
        return found + self._letters(text[end:].replace(mark, ""))

    def _letters(self, text: str) -> list[int]:
        return list(self._literal.encode(text, add_special_tokens=False).ids) if text else []


def _literal(tokenizer: Any, names: set[str]) -> Any:
    """A copy that takes these names for letters."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["special"] or token["content"] in names
    literal = type(tokenizer).from_str(json.dumps(state))
    literal.encode_special_tokens = True
    return literal


def _texts(message: dict[str, Any]) -> Iterable[str]:
    content = message["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


def _changed(message: dict[str, Any], change: Any) -> dict[str, Any]:
    """The message with each of its texts changed."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": change(content)}
    return {
        **message,
        "content": [{**part, "text": change(part["text"])} if part["type"] == "text" else part for part in content],
    }
