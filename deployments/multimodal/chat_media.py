"""The media of a chat: found by kind, decoded, and left out of what the chat template gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from deployments.media.audio_decoder import AudioDecoder
from deployments.media.audio_files import SAMPLE_RATE
from deployments.media.image_decoder import ImageDecoder
from deployments.multimodal.multimodal_request import MediaMessage, TextPart
from deployments.vllm_runtime.media_renderer import Media

MAX_PIXELS = 50_000_000
"""Of one image; the model's processor scales it down."""
MAX_AUDIO_S = 1800.0
"""Seconds of one recording."""

KINDS = ("image", "audio")


class MediaDecoders:
    """Decoder processes for images and recordings. May be used from any thread."""

    def __init__(self) -> None:
        self._images = ImageDecoder(MAX_PIXELS)
        self._recordings = AudioDecoder(MAX_AUDIO_S)

    def decode(self, chat: Sequence[MediaMessage], field: str = "messages", changes: list[str] | None = None) -> Media:
        """All media of the chat by kind, in order. A sentence about each thing that is left out of a file or changed is
        appended to `changes`. Raises `InvalidRequest` about the path of a file in `messages`, or about `image` or
        `audio` where the chat comes from another `field`."""
        media: Media = {}
        for path, image in files(chat, "image"):
            name = path if field == "messages" else "image"
            decoded = self._images.read(image, name)
            media.setdefault("image", []).append(decoded.image)
            if changes is not None:
                changes += decoded.changes(name)
        for path, audio in files(chat, "audio"):
            name = path if field == "messages" else "audio"
            samples, notes = self._recordings.read(audio, name)
            if changes is not None:
                changes += [f"{name}: {note}" for note in notes]
            media.setdefault("audio", []).append((samples, SAMPLE_RATE))
        return media

    def close(self) -> None:
        """End the processes."""
        self._images.close()
        self._recordings.close()


def files(chat: Sequence[MediaMessage], kind: str) -> Iterator[tuple[str, bytes]]:
    """The files of that kind in a chat, in order, with their paths."""
    for m, message in enumerate(chat):
        for p, part in enumerate(message.content if not isinstance(message.content, str) else ()):
            if part.type == kind:
                yield f"messages[{m}].content[{p}].{kind}", getattr(part, kind)


def for_template(message: MediaMessage) -> dict[str, Any]:
    """A message as chat templates take it: parts without their files."""
    if isinstance(message.content, str):
        return {"role": message.role, "content": [{"type": "text", "text": message.content}]}
    parts = [part.model_dump() if isinstance(part, TextPart) else {"type": part.type} for part in message.content]
    return {"role": message.role, "content": parts}
