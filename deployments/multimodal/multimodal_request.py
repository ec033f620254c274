"""The request of a multimodal worker: a question or a chat with images and recordings, and the forms of the answer."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deployments.llm.generation_request import ChatMessage, GenerationRequest, Text
from deployments.request_fields import MAX_FILE_BYTES, Seed
from rbee_serve.content import FileField
from rbee_serve.validation.parse import violated

MAX_PARTS = 64
"""Parts of one message."""

FILE = Field(min_length=1, max_length=MAX_FILE_BYTES, repr=False)
Modality = Literal["text", "audio", "image"]


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class TextPart(_Object):
    """A part of a message that is text."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=32768, repr=False)]


class ImagePart(_Object):
    """A part of a message that is an image: PNG, JPEG or WebP."""

    type: Literal["image"]
    image: Annotated[bytes, FILE, FileField("image")]


class AudioPart(_Object):
    """A part of a message that is a recording: WAV, FLAC, OGG, MP3, AIFF or AU."""

    type: Literal["audio"]
    audio: Annotated[bytes, FILE, FileField("audio")]


Part = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(min_length=1, max_length=MAX_PARTS)]
MediaMessage = ChatMessage[Text | Parts]
"""A message whose content is a text, or parts in their order."""


class SpeechOptions(_Object):
    """How the answer is spoken: fields of the audio worker's task `generate`."""

    voice: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    speed: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    sample_rate: Annotated[int, Field(ge=8000, le=48000)] | None = None
    format: Literal["f32", "f32le", "pcm_s16le"] | None = None


class ImageOptions(_Object):
    """How the image is generated: fields of the vision worker's task `generate`."""

    prompt: Annotated[str | None, Field(min_length=1, max_length=8192, repr=False)] = None
    """What the image shows; the answer itself if left out."""
    width: Annotated[int, Field(ge=8, le=2048)] | None = None
    height: Annotated[int, Field(ge=8, le=2048)] | None = None
    steps: Annotated[int, Field(ge=1, le=150)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=50)] | None = None
    seed: Seed = None
    format: Literal["png", "jpeg", "webp"] | None = None
    preview_every: Annotated[int, Field(ge=0, le=150)] = 0


class MultimodalRequest(GenerationRequest):
    """A question with images or recordings, or a chat with them, and the forms of the answer."""

    prompt: Annotated[str | None, Field(min_length=1, max_length=32768, repr=False)] = None
    """A question, about `image` and `audio` where they are given."""
    image: Annotated[bytes | None, FILE, FileField("image")] = None
    """An image before `prompt`: PNG, JPEG or WebP."""
    audio: Annotated[bytes | None, FILE, FileField("audio")] = None
    """A recording before `prompt`: WAV, FLAC, OGG, MP3, AIFF or AU."""
    messages: Annotated[list[MediaMessage] | None, Field(min_length=1, max_length=1024, repr=False)] = None
    """The chat to answer. Exactly one of `prompt` and `messages` is given."""
    modalities: Annotated[list[Modality], Field(min_length=1, max_length=3)] = Field(default=["text"])
    """The forms of the answer. `audio`: the text as speech, while it is generated. `image`: an image of the text."""
    speech: SpeechOptions | None = None
    """How the answer is spoken."""
    picture: ImageOptions | None = None
    """How the image is generated."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt and messages")
        for field in ("image", "audio"):
            if getattr(self, field) is not None and self.prompt is None:
                raise violated(field, "prompt", "goes with prompt; in messages it is a part of a message")
        if "text" not in self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise violated("modalities", "text, …", "must hold text, and each other form at most once")
        for field, modality in (("speech", "audio"), ("picture", "image")):
            if getattr(self, field) is not None and modality not in self.modalities:
                raise violated(field, f"modalities: {modality}", f"needs {modality} among the modalities")
        return self

    @property
    def roles(self) -> frozenset[str]:
        """See `InferenceRequest.roles`."""
        return frozenset(self.modalities) - {"text"}

    @property
    def chat(self) -> list[MediaMessage]:
        """The messages; a `prompt` is a chat of one message."""
        if self.messages is not None:
            return self.messages
        parts: list[Part] = []
        if self.image is not None:
            parts.append(ImagePart(type="image", image=self.image))
        if self.audio is not None:
            parts.append(AudioPart(type="audio", audio=self.audio))
        return [MediaMessage(role="user", content=[*parts, TextPart(type="text", text=self.prompt or "")])]
