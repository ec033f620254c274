"""What accompanies a written answer: a voice that speaks it, and a picture of it, each by another worker."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec

from deployments.multimodal.sentences import sentences
from rbee_serve.events import Error, Event, Narration, Output, Progress
from rbee_serve.worker.composition import DerivedOutput
from rbee_serve.worker.spec import Peer

MAX_CHARACTERS = 8192
"""Of a text that becomes a picture; no model reads more."""


def spoken(peer: Peer, options: dict[str, Any]) -> DerivedOutput:
    """A voice: `audio` events, sentence by sentence, of one signal. `options` are fields of the audio worker's task
    `generate`."""

    async def speak(text: AsyncIterator[str]) -> AsyncGenerator[Event[Any], None]:
        count = 0
        async for sentence in sentences(text):
            if not any(map(str.isalnum, sentence)):
                continue
            async with aclosing(_made(peer, {**options, "prompt": sentence})) as events:
                async for event in events:
                    if isinstance(event, Output):
                        yield Output(msgspec.structs.replace(event.value, i=count))
                        count += 1

    return speak


def drawn(peer: Peer, options: dict[str, Any]) -> DerivedOutput:
    """A picture of the whole text, or of the `prompt` among the options: `image` events, previews too, and `progress`
    in steps. `options` are fields of the vision worker's task `generate`."""

    async def draw(text: AsyncIterator[str]) -> AsyncGenerator[Event[Any], None]:
        # A prompt is no sentence: small models know their words without the mark at the end.
        written = "".join([piece async for piece in text]).strip().rstrip(".")
        prompt = options.get("prompt") or written[:MAX_CHARACTERS]
        if not prompt:
            return
        async with aclosing(_made(peer, {**options, "prompt": prompt})) as events:
            async for event in events:
                yield msgspec.structs.replace(event, kind="steps") if isinstance(event, Progress) else event

    return draw


async def _made(peer: Peer, fields: dict[str, Any]) -> AsyncGenerator[Event[Any], None]:
    """What another worker makes, and what it tells meanwhile. Raises the `WorkerError` that it ends with."""
    async with aclosing(peer(fields)) as events:
        async for event in events:
            if isinstance(event, Error):
                raise event.to_exception()
            if isinstance(event, Output | Progress | Narration):
                yield event
