"""Outputs that other workers derive from a generated text: speech, and an image."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec

from deployments.multimodal.sentences import sentences
from deployments.request_fields import is_blank
from rbee_serve.events import Error, Event, Narration, Output, Progress
from rbee_serve.worker.composition import DerivedOutput
from rbee_serve.worker.spec import Peer

MAX_PROMPT_CHARACTERS = 8192
"""Characters of a text that become an image's prompt; no model reads more."""


def spoken(peer: Peer, options: dict[str, Any]) -> DerivedOutput:
    """Speech: `audio` events of one signal, sentence by sentence. `options` are fields of the audio worker's task
    `generate`."""

    async def derive(text: AsyncIterator[str]) -> AsyncGenerator[Event[Any], None]:
        count = 0
        async for sentence in sentences(text):
            if not any(map(str.isalnum, sentence)):
                continue
            async with aclosing(_events(peer, {**options, "prompt": sentence})) as events:
                async for event in events:
                    if isinstance(event, Output):
                        yield Output(msgspec.structs.replace(event.value, i=count))
                        count += 1

    return derive


def drawn(peer: Peer, options: dict[str, Any]) -> DerivedOutput:
    """An image of the whole text, or of the `prompt` among the options: `image` events with previews, and `progress`
    in steps. `options` are fields of the vision worker's task `generate`."""

    async def derive(text: AsyncIterator[str]) -> AsyncGenerator[Event[Any], None]:
        # Small models are trained on prompts without a full stop.
        generated = "".join([piece async for piece in text]).strip().rstrip(".")
        prompt = options.get("prompt") or generated[:MAX_PROMPT_CHARACTERS]
        if is_blank(prompt):
            return
        if not options.get("prompt") and len(generated) > len(prompt):
            sentence = f"The image is of the first {len(prompt)} of {len(generated)} characters of the text"
            yield Narration(actor="multimodal-worker", action="truncate", target="image", human=sentence)
        async with aclosing(_events(peer, {**options, "prompt": prompt})) as events:
            async for event in events:
                yield msgspec.structs.replace(event, kind="steps") if isinstance(event, Progress) else event

    return derive


async def _events(peer: Peer, fields: dict[str, Any]) -> AsyncGenerator[Event[Any], None]:
    """The outputs, progress and narration of another worker. Raises the `WorkerError` that it ends with."""
    async with aclosing(peer(fields)) as events:
        async for event in events:
            if isinstance(event, Error):
                raise event.to_exception()
            if isinstance(event, Output | Progress | Narration):
                yield event
