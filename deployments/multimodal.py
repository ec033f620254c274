"""The multimodal worker: texts, pictures and recordings in, text out, on vLLM; and what other workers make of the text:
a voice that speaks it, a picture of it."""

from __future__ import annotations

import asyncio
import importlib
import io
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deployments.audio_decoder import AudioDecoder
from deployments.audio_files import SAMPLE_RATE
from deployments.chat_text import ChatText, Role
from deployments.companions import drawn, spoken
from deployments.image_decoder import ImageDecoder
from deployments.vllm_engine import check_engine
from deployments.vllm_generation import GenerationBackend, GenerationEngine, GenerationRequest, load_engine
from rbee_serve.config import WorkerConfig
from rbee_serve.content import Content
from rbee_serve.errors import ConfigurationError, InvalidRequest
from rbee_serve.events import Event
from rbee_serve.outputs import AudioChunkOutput, ImageOutput, TokenOutput
from rbee_serve.replica.composed_answer import Companion, composed
from rbee_serve.replica.model_files import Format, check_local, prepare
from rbee_serve.validation import violated
from rbee_serve.worker import LoadContext, Peer, WorkerSpec

logger = logging.getLogger(__name__)

FORMATS: tuple[Format, ...] = ("safetensors",)

MAX_PIXELS = 50_000_000
"""Of one picture; the model's processor scales it down."""
MAX_AUDIO_S = 1800.0
"""Seconds of one recording."""
MAX_PARTS = 64
"""Parts of one message."""

FILE = Field(min_length=1, max_length=32 * 2**20, repr=False)
Text = Annotated[str, Field(max_length=32768)]
Modality = Literal["text", "audio", "image"]


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class TextPart(_Object):
    """A part of a message that is text."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=32768, repr=False)]


class ImagePart(_Object):
    """A part of a message that is a picture: PNG, JPEG or WebP."""

    type: Literal["image"]
    image: Annotated[bytes, FILE, Content("image")]


class AudioPart(_Object):
    """A part of a message that is a recording: WAV, FLAC, OGG or MP3."""

    type: Literal["audio"]
    audio: Annotated[bytes, FILE, Content("audio")]


Part = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(min_length=1, max_length=MAX_PARTS)]


class Turn(_Object):
    """One message of a chat."""

    role: Role
    """Who speaks."""
    content: Annotated[Text | Parts, Field(repr=False)]
    """What is said and shown: a text, or parts in their order."""


class SpeechOptions(_Object):
    """How the answer is spoken: fields of the audio worker's task `generate`."""

    voice: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    speed: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    sample_rate: Annotated[int, Field(ge=8000, le=48000)] | None = None
    format: Literal["f32", "f32le", "pcm_s16le"] | None = None


class PictureOptions(_Object):
    """How the picture is made: fields of the vision worker's task `generate`."""

    prompt: Annotated[str | None, Field(min_length=1, max_length=8192, repr=False)] = None
    """What is to be seen; the answer itself if left out."""
    width: Annotated[int, Field(ge=8, le=2048)] | None = None
    height: Annotated[int, Field(ge=8, le=2048)] | None = None
    steps: Annotated[int, Field(ge=1, le=150)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=50)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**64 - 1)] | None = None
    format: Literal["png", "jpeg", "webp"] | None = None
    preview_every: Annotated[int, Field(ge=0, le=150)] = 0


class MultimodalRequest(GenerationRequest):
    """A question with pictures or recordings, or a chat with them, and in which forms it is to be answered."""

    prompt: Annotated[str | None, Field(min_length=1, max_length=32768, repr=False)] = None
    """A question, about `image` and `audio` where they are given."""
    image: Annotated[bytes | None, FILE, Content("image")] = None
    """A picture that goes before `prompt`: PNG, JPEG or WebP."""
    audio: Annotated[bytes | None, FILE, Content("audio")] = None
    """A recording that goes before `prompt`: WAV, FLAC, OGG or MP3."""
    messages: Annotated[list[Turn] | None, Field(min_length=1, max_length=1024, repr=False)] = None
    """The chat to answer. Exactly one of `prompt` and `messages` is given."""
    modalities: Annotated[list[Modality], Field(min_length=1, max_length=3)] = Field(default=["text"])
    """The forms of the answer. `audio`: it is spoken while it is written. `image`: a picture is made of it."""
    speech: SpeechOptions | None = None
    """How the answer is spoken."""
    picture: PictureOptions | None = None
    """How the picture is made."""

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
    def turns(self) -> list[Turn]:
        """The chat, with `prompt` as a chat of one message."""
        if self.messages is not None:
            return self.messages
        parts: list[TextPart | ImagePart | AudioPart] = []
        if self.image is not None:
            parts.append(ImagePart(type="image", image=self.image))
        if self.audio is not None:
            parts.append(AudioPart(type="audio", audio=self.audio))
        return [Turn(role="user", content=[*parts, TextPart(type="text", text=self.prompt or "")])]


Output = TokenOutput | AudioChunkOutput | ImageOutput


class MultimodalBackend(GenerationBackend[MultimodalRequest, Output]):
    """An engine that reads texts, pictures and recordings, decoders for these, and the workers that accompany it."""

    def __init__(self, engine: GenerationEngine, context: LoadContext) -> None:
        super().__init__(engine)
        self._peers = context.peers
        self._chat = ChatText(self._tokenizer)
        self._renderer = engine.llm.renderer
        self._client_error = importlib.import_module("vllm.exceptions").VLLMClientError
        self._most: dict[str, int] = dict(self._renderer.get_mm_processor().info.allowed_mm_limits)
        self._images = ImageDecoder(MAX_PIXELS)
        self._recordings = AudioDecoder(MAX_AUDIO_S)

    async def execute(self, request: MultimodalRequest) -> AsyncGenerator[Event[Output], None]:
        """One `token` for each generated token; `audio` and `image` of them meanwhile, where they are wanted;
        `metrics`, `narration`, and `end` when all is done. Raises `InvalidRequest`, `RequestTooLong`, and what other
        workers raise."""
        companions = [self._companion(role, request) for role in request.modalities if role != "text"]
        field = "prompt" if request.messages is None else "messages"
        prompt = await self._read(request.turns, field, request.max_tokens)
        text = self._generate(request, prompt, field, "multimodal-worker")
        answer: AsyncGenerator[Event[Any], None] = composed(text, companions) if companions else text
        async with aclosing(answer) as events:
            async for event in events:
                yield event

    def _companion(self, role: str, request: MultimodalRequest) -> Companion:
        peer: Peer | None = self._peers.get(role)
        if peer is None:
            able = ", ".join(["text", *self._peers])
            told = f"this worker answers in {able}; `uses: {{{role}: …}}` in its configuration would name one for more"
            raise InvalidRequest.of_field("modalities", f"of: {able}", told)
        options = request.speech if role == "audio" else request.picture
        return (spoken if role == "audio" else drawn)(peer, options.model_dump(exclude_none=True) if options else {})

    async def _read(self, turns: list[Turn], field: str, max_tokens: int) -> Any:
        """The chat as the engine's input: tokens, with those of the pictures and recordings in their places."""
        counts = {kind: len(list(_files(turns, kind))) for kind in ("image", "audio")}
        for kind, count in counts.items():
            if count > (most := self._most.get(kind, 0)):
                told = f"takes at most {most} of them at once" if most else "takes none"
                raise InvalidRequest.of_field(
                    field, f"{kind} <= {most}", f"has {count} x {kind}, but this model {told}"
                )
        media = await asyncio.to_thread(self._decoded, turns, field)
        tokens = await asyncio.to_thread(self._chat.tokens, [_plain(turn) for turn in turns])
        self._check_length(
            field, len(tokens), max_tokens
        )  # pictures come on top: what they make of it is checked later
        return (await self._rendered(tokens, media, field))[0]

    async def _rendered(self, tokens: list[int], media: dict[str, list[Any]], field: str) -> Any:
        try:
            return await self._renderer.render_cmpl_async([{"prompt_token_ids": tokens, "multi_modal_data": media}])
        except (ValueError, self._client_error) as exc:  # of the model's processor: a picture too narrow, and the like
            logger.warning("the model's processor refuses the media of a request", exc_info=exc)
            raise InvalidRequest.of_field(field, "media", "the model cannot read these pictures or recordings") from exc

    def _decoded(self, turns: list[Turn], field: str = "messages") -> dict[str, list[Any]]:
        media: dict[str, list[Any]] = {}
        for path, image in _files(turns, "image"):
            decoded = self._images.decode(image, path if field == "messages" else "image")
            media.setdefault("image", []).append(decoded)
        for _, audio in _files(turns, "audio"):
            media.setdefault("audio", []).append((self._recordings.decode(audio), SAMPLE_RATE))
        return media

    def verify(self, worker_id: str) -> None:
        """Raise `ConfigurationError` where the model's chat template has no place for a picture that it could see."""
        if not self._most.get("image"):
            return
        seen = ImagePart(type="image", image=grey_picture())
        turns = [Turn(role="user", content=[seen, TextPart(type="text", text="Hello")])]
        try:
            tokens = self._chat.tokens([_plain(turn) for turn in turns])
            self._renderer.render_cmpl([{"prompt_token_ids": tokens, "multi_modal_data": self._decoded(turns)}])
        except (InvalidRequest, ValueError, self._client_error) as exc:
            raise ConfigurationError(
                f"worker {worker_id}: the model's chat template takes no pictures as parts of a message; choose a model"
                " whose template does"
            ) from exc

    def close(self) -> None:
        """End the engine's processes and the decoders."""
        super().close()
        self._images.close()
        self._recordings.close()


def grey_picture() -> bytes:
    """A grey PNG of 64 x 64 pixels."""
    file = io.BytesIO()
    importlib.import_module("PIL.Image").new("RGB", (64, 64), "grey").save(file, "PNG")
    return file.getvalue()


def _files(turns: list[Turn], kind: str) -> Iterator[tuple[str, bytes]]:
    """The files of that kind in a chat, in their order, by their paths."""
    for t, turn in enumerate(turns):
        for p, part in enumerate(turn.content if not isinstance(turn.content, str) else ()):
            if part.type == kind:
                yield f"messages[{t}].content[{p}].{kind}", getattr(part, kind)


def _plain(turn: Turn) -> dict[str, Any]:
    """A message as chat templates take it: parts without their files."""
    if isinstance(turn.content, str):
        return {"role": turn.role, "content": [{"type": "text", "text": turn.content}]}
    parts = [part.model_dump() if isinstance(part, TextPart) else {"type": part.type} for part in turn.content]
    return {"role": turn.role, "content": parts}


def load(context: LoadContext) -> MultimodalBackend:
    """Fetch and check the model's files, then start the engine on them."""
    assert context.worker.model_ref is not None
    # Files that were processed before would be kept in two processes, a 4 GB each.
    engine = load_engine(context, prepare(context.worker.model_ref, context.report), mm_processor_cache_gb=0)
    backend = MultimodalBackend(engine, context)
    backend.verify(context.worker.id)
    return backend


def check(worker: WorkerConfig) -> None:
    """Look at the model's files and the engine's options before anything starts."""
    check_local(worker, FORMATS)
    check_engine(worker)


SPEC = WorkerSpec(
    name="multimodal",
    request=MultimodalRequest,
    outputs=(TokenOutput, AudioChunkOutput, ImageOutput),
    load=load,
    warm_up=lambda: MultimodalRequest(prompt="Hello", max_tokens=2, temperature=0.0),
    backends=frozenset({"cuda", "cpu"}),
    default_capacity=64,
    modules=("vllm", "PIL"),
    extra="cpu,vision,audio",
    roles={"audio": "audio/generate", "image": "vision/generate"},
    check=check,
)
