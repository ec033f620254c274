"""Chats as tokens, by the model's own template. Only the template can produce the model's control tokens.

A tokenizer reads `<|im_end|>` in a user's text as the control token of that name, so a text could end its own message
and begin a system message; `<image>` would be a placeholder without an image. Here such names in texts are
encoded as literal text. So are the names of the placeholder tokens that the template writes for an image or a
recording, whether or not the tokenizer marks them as special. Other added tokens, such as `<think>` or a run of blanks,
stay tokens: models are trained with them in texts, and templates look for them in an assistant's message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from deployments.text_characters import any_of
from rbee_serve.errors import InvalidRequest

_PRIVATE_USE = range(0xE000, 0xF900)
"""Characters without a meaning (Unicode's private use area)."""


class ChatTokenizer:
    """A tokenizer of transformers and its chat template. May be used from any thread."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        names = special | self._placeholders()
        self._control = re.compile(any_of(names))
        self._first_characters = re.compile(any_of({name[0] for name in names}))
        self._literal = _literal_tokenizer(tokenizer.backend_tokenizer, names)

    def tokens(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """The tokens of the chat, up to where the model's answer begins. `content` of a message is a text, or a list of
        parts such as `{"type": "text", "text": …}`.

        Raises `InvalidRequest` where the model has no template, or its template refuses this chat.
        """
        if not self.has_control_names(messages):
            return list(self._tokenizer.encode(self._rendered(messages), add_special_tokens=False))
        texts = [text for message in messages for text in _texts(message)]
        # A mark after each first character of a name keeps the name from being complete in the rendered text.
        mark = next(character for character in map(chr, _PRIVATE_USE) if not any(character in text for text in texts))
        marked = [
            _with_texts(message, lambda text: self._first_characters.sub(rf"\g<0>{mark}", text)) for message in messages
        ]
        return self._encode_marked(self._rendered(marked), mark)

    def has_control_names(self, messages: Sequence[dict[str, Any]]) -> bool:
        """Whether the texts of the chat, joined, have the name of a control token in them."""
        return bool(self._control.search("".join(text for message in messages for text in _texts(message))))

    def _placeholders(self) -> set[str]:
        """Names of the added tokens that a chat with an image or a recording has, and one without has not."""
        found: set[int] = set()
        for kind in ("image", "audio"):
            with suppress(InvalidRequest):  # no template, or one that does not know this kind
                found |= self._sample_tokens({"type": kind}) - self._sample_tokens()
        added = self._tokenizer.added_tokens_decoder
        return {added[token].content for token in found if token in added and added[token].content.strip()}

    def _sample_tokens(self, *parts: dict[str, Any]) -> set[int]:
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

    def _encode_marked(self, text: str, mark: str) -> list[int]:
        """The template's control tokens and, without the marks, the tokens of the text between them."""
        found, end = [], 0
        for match in self._control.finditer(text):
            found += self._encode_literally(text[end : match.start()].replace(mark, ""))
            found.append(int(self._tokenizer.convert_tokens_to_ids(match[0])))
            end = match.end()
        return found + self._encode_literally(text[end:].replace(mark, ""))

    def _encode_literally(self, text: str) -> list[int]:
        return list(self._literal.encode(text, add_special_tokens=False).ids) if text else []


def _literal_tokenizer(tokenizer: Any, names: set[str]) -> Any:
    """A copy that encodes these names as literal text."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["special"] or token["content"] in names
    literal = type(tokenizer).from_str(json.dumps(state))
    literal.encode_special_tokens = True
    return literal


def _texts(message: dict[str, Any]) -> Iterable[str]:
    content = message["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


def _with_texts(message: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The message with each of its texts changed."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": change(content)}
    return {
        **message,
        "content": [{**part, "text": change(part["text"])} if part["type"] == "text" else part for part in content],
    }
