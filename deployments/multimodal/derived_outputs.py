"""Outputs that other workers derive from a generated text: speech, and an image."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec

from deployments.audio.speech_text import is_speakable
from deployments.multimodal.sentences import sentences
from deployments.request_fields import is_blank
from rbee_serve.errors import InvalidRequest
from rbee_serve.events import NOTES, Error, Event, Narration, Output, Progress
from rbee_serve.worker.composition import DerivedOutput
from rbee_serve.worker.spec import Peer

MAX_PROMPT_CHARACTERS = 8192
"""Characters of a text that become an image's prompt; no model reads more."""


def spoken(peer: Peer, options: dict[str, Any]) -> DerivedOutput:
    """Speech: `audio` events of one signal, sentence by sentence, and the voice's notes. A sentence that the voice
    refuses is left out, with a note. `options` are fields of the audio worker's task `generate`."""

    async def derive(text: AsyncIterator[str]) -> AsyncGenerator[Event[Any], None]:
        count = number = 0
        notes: set[str] = set()
        async for sentence in sentences(text):
            number += 1
            if not is_speakable(sentence):
                continue
            try:
                async with aclosing(_events(peer, {**options, "prompt": sentence})) as events:
                    async for event in events:
                        if isinstance(event, Output):
                            yield Output(msgspec.structs.replace(event.value, i=count))
                            count += 1
                        elif isinstance(event, Narration) and event.action in NOTES and event.human not in notes:
                            notes.add(event.human)
                            yield event
            except InvalidRequest as exc:
                if (reason := _fault_of_prompt(exc)) is None:
                    raise
                human = f"Sentence {number} is not spoken: it {reason}"
                yield Narration(actor="multimodal-worker", action="note", target="audio", human=human)

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


def _fault_of_prompt(error: InvalidRequest) -> str | None:
    """The message about `prompt`; None where the error is about another field, too. An error that ends a stream has no
    violations, and one message."""
    if any(violation.field != "prompt" for violation in error.violations):
        return None
    name, separator, reason = error.message.partition(": ")
    return reason if name == "prompt" and separator else None


async def _events(peer: Peer, fields: dict[str, Any]) -> AsyncGenerator[Event[Any], None]:
    """The outputs, progress and narration of another worker. Raises the `WorkerError` that it ends with."""
    async with aclosing(peer(fields)) as events:
        async for event in events:
            if isinstance(event, Error):
                raise event.to_exception()
            if isinstance(event, Output | Progress | Narration):
                yield event
