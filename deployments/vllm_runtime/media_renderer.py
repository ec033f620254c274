"""Chat tokens and decoded media, made into vLLM's engine input; and our change to how vLLM finds media placeholders.

A chat template writes a placeholder for each image and recording, which is a token (`deployments.llm.chat_template`
makes it one, and nothing else). vLLM replaces it by the tokens that the image takes. Where no such token is left, vLLM
decodes the prompt to text, searches that for the placeholder's name, and encodes it anew: a user's `<image>` would then
be a placeholder and a user's `<|im_end|>` a control token. Placeholders are always tokens here, so the search in text
is switched off.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from deployments.vllm_runtime.generation_engine import EngineInput, GenerationEngine
from deployments.vllm_runtime.private_api import TEXT_SEARCH, fits

logger = logging.getLogger(__name__)

Media = dict[str, list[Any]]
"""By kind: `image` has images of Pillow's, `audio` pairs of samples and sample rate."""

COUNT_ERROR = "Expected there to be"
"""The first words of vLLM's `RuntimeError` for a prompt with another number of placeholders than media."""


class UnreadableMedia(Exception):
    """The model's processor refuses an image or a recording, such as one that is too narrow."""


class PlaceholderMismatch(Exception):
    """The prompt has no placeholder for some of the media."""


class MediaRenderer:
    """The renderer and the processor of an engine. Its methods may be called from any thread."""

    def __init__(self, engine: GenerationEngine) -> None:
        from vllm.exceptions import VLLMClientError

        self._renderer = engine.llm.renderer
        self._client_error = VLLMClientError
        processor = self._renderer.get_mm_processor()
        self.limits: dict[str, int] = dict(processor.info.allowed_mm_limits)
        """How many media of each kind a request may have."""
        self.text_search_off = fits(TEXT_SEARCH)
        """False where the installed vLLM may search texts for placeholders: a prompt with media must then have no
        control token's name in a text."""
        if self.text_search_off:
            processor._apply_prompt_updates_via_text = _no_placeholder

    async def render(self, tokens: list[int], media: Media) -> EngineInput:
        """The engine input. Raises `UnreadableMedia` or `PlaceholderMismatch`."""
        with self._translated_errors():
            [rendered] = await self._renderer.render_cmpl_async([_prompt(tokens, media)])
        return rendered  # type: ignore[no-any-return]

    def render_blocking(self, tokens: list[int], media: Media) -> EngineInput:
        """The same, where no event loop runs."""
        with self._translated_errors():
            [rendered] = self._renderer.render_cmpl([_prompt(tokens, media)])
        return rendered  # type: ignore[no-any-return]

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, self._client_error) as exc:
            logger.warning("the model's processor refuses the media of a request", exc_info=exc)
            raise UnreadableMedia from exc
        except (AssertionError, RuntimeError) as exc:
            if isinstance(exc, RuntimeError) and not str(exc).startswith(COUNT_ERROR):
                raise
            logger.warning("the model's chat template leaves out media of a request", exc_info=exc)
            raise PlaceholderMismatch from exc


def _prompt(tokens: list[int], media: Media) -> dict[str, Any]:
    return {"prompt_token_ids": tokens, "multi_modal_data": media}


def _no_placeholder(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("the prompt has no placeholder token for an image or a recording")  # as vLLM's models do
