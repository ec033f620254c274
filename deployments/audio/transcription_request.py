"""The request of the audio worker's task `transcribe`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from deployments.audio.languages import language_code
from deployments.request_fields import MAX_FILE_BYTES
from rbee_serve.content import FileField
from rbee_serve.request import InferenceRequest


class TranscribeRequest(InferenceRequest):
    """A recording, and how to transcribe it."""

    audio: Annotated[bytes, Field(min_length=1, max_length=MAX_FILE_BYTES, repr=False), FileField("audio")]
    """The file: WAV, FLAC, OGG (Vorbis, Opus), MP3, AIFF or AU, of any usual rate and up to 8 channels."""
    language: Annotated[str, Field(min_length=2, max_length=64)] | None = None
    """The spoken language: an ISO 639 code, with or without a region, or its English name. Detected if left out, and
    for `auto`."""
    translate: bool = False
    """Whether to translate the text into English."""
    prompt: Annotated[str | None, Field(min_length=1, max_length=4096, repr=False)] = None
    """Text that could precede the recording: names and words to expect, and the style."""
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    """0 selects the likeliest text. If left out, a window with a repetitive text is retried at higher temperatures."""
    timestamps: Literal["segment", "word"] = "segment"
    """Whether each word has a timestamp too."""
    vad_filter: bool = False
    """Whether parts without speech are cut out first."""

    @field_validator("language")
    @classmethod
    def _check_language(cls, language: str | None) -> str | None:
        return None if language is None else language_code(language)

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str | None) -> str | None:
        if prompt is not None and "<|" in prompt:  # `<|endoftext|>` and other control tokens
            raise ValueError("must not hold control tokens, which begin with <|")
        return prompt
