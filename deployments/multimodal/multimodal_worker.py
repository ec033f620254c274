"""The multimodal worker: texts, pictures and recordings in, text out, on vLLM; and what other workers make of the text:
a voice that speaks it, a picture of it."""

from __future__ import annotations

import asyncio
import importlib
import io
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, NoReturn

from deployments.llm.chat_template import ChatTokenizer
from deployments.llm.text_generation import GenerationBackend, GenerationEngine, load_engine
from deployments.media.audio_decoder import AudioDecoder
from deployments.media.audio_files import SAMPLE_RATE
from deployments.media.image_decoder import ImageDecoder
from deployments.multimodal.derived_outputs import drawn, spoken
from deployments.multimodal.multimodal_request import ImagePart, MultimodalRequest, TextPart, Turn
from deployments.vllm_runtime.cpu_defaults import number_type
from deployments.vllm_runtime.vllm_engine import check_engine
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError, InvalidRequest
from rbee_serve.events import Event
from rbee_serve.model_files.resolve import Format, check_local, prepare
from rbee_serve.outputs import AudioChunkOutput, ImageOutput, TokenOutput
from rbee_serve.worker.composition import DerivedOutput, composed
from rbee_serve.worker.spec import LoadContext, Peer, WorkerSpec

logger = logging.getLogger(__name__)

FORMATS: tuple[Format, ...] = ("safetensors",)

MAX_PIXELS = 50_000_000
"""Of one picture; the model's processor scales it down."""
MAX_AUDIO_S = 1800.0
"""Seconds of one recording."""
TEXT_SEARCH = "_apply_prompt_updates_via_text"
"""vLLM's second search for a picture's place, where no token is one: in the prompt's letters, which it then reads anew,
with a user's `<|im_end|>` as the token of that name. Places are tokens here, so it is switched off."""
MISCOUNTED = "Expected there to be"
"""How vLLM's `RuntimeError` begins where a prompt's places are not as many as the pictures or recordings."""
Output = TokenOutput | AudioChunkOutput | ImageOutput


class MultimodalBackend(GenerationBackend[MultimodalRequest, Output]):
    """An engine that reads texts, pictures and recordings, decoders for these, and the workers that accompany it."""

    def __init__(self, engine: GenerationEngine, context: LoadContext) -> None:
        super().__init__(engine)
        self._peers = context.peers
        self._chat = ChatTokenizer(self._tokenizer)
        self._renderer = engine.llm.renderer
        self._client_error = importlib.import_module("vllm.exceptions").VLLMClientError
        processor = self._renderer.get_mm_processor()
        self._most: dict[str, int] = dict(processor.info.allowed_mm_limits)
        assert hasattr(processor, TEXT_SEARCH)  # or the next line would protect nobody
        setattr(processor, TEXT_SEARCH, _no_place)
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

    def _companion(self, role: str, request: MultimodalRequest) -> DerivedOutput:
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
        with self._reading(field):
            return await self._renderer.render_cmpl_async([{"prompt_token_ids": tokens, "multi_modal_data": media}])

    @contextmanager
    def _reading(self, field: str) -> Iterator[None]:
        """What the model's processor does not take, as an `InvalidRequest` about `field`."""
        try:
            yield
        except (ValueError, self._client_error) as exc:  # a picture too narrow, and the like
            logger.warning("the model's processor refuses the media of a request", exc_info=exc)
            raise InvalidRequest.of_field(field, "media", "the model cannot read these pictures or recordings") from exc
        except (AssertionError, RuntimeError) as exc:
            if isinstance(exc, RuntimeError) and not str(exc).startswith(MISCOUNTED):
                raise
            logger.warning("the model's chat template leaves out media of a request", exc_info=exc)
            told = "the chat template has no place for some pictures or recordings; send them with a user's text"
            raise InvalidRequest.of_field(field, "places for all media", told) from exc

    def _decoded(self, turns: list[Turn], field: str = "messages") -> dict[str, list[Any]]:
        media: dict[str, list[Any]] = {}
        for path, image in _files(turns, "image"):
            decoded = self._images.decode(image, path if field == "messages" else "image")
            media.setdefault("image", []).append(decoded)
        for path, audio in _files(turns, "audio"):
            samples = self._recordings.decode(audio, path if field == "messages" else "audio")
            media.setdefault("audio", []).append((samples, SAMPLE_RATE))
        return media

    def verify(self, worker_id: str) -> None:
        """Raise `ConfigurationError` where the model's chat template has no place for a picture that it could see."""
        if not self._most.get("image"):
            return
        seen = ImagePart(type="image", image=grey_picture())
        turns = [Turn(role="user", content=[seen, TextPart(type="text", text="Hello")])]
        try:
            tokens = self._chat.tokens([_plain(turn) for turn in turns])
            media = self._decoded(turns)
            with self._reading("messages"):
                self._renderer.render_cmpl([{"prompt_token_ids": tokens, "multi_modal_data": media}])
        except InvalidRequest as exc:
            raise ConfigurationError(
                f"worker {worker_id}: the model's chat template takes no pictures as parts of a message; choose a model"
                " whose template does"
            ) from exc

    def close(self) -> None:
        """End the engine's processes and the decoders."""
        super().close()
        self._images.close()
        self._recordings.close()


def _no_place(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("no token of the prompt is the place of a picture or recording")  # vLLM's way of telling it


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
    model = prepare(context.worker.model_ref, context.report)
    # Files that were processed before would be kept in two processes, a 4 GB each.
    engine = load_engine(context, model, mm_processor_cache_gb=0, **number_type(context))
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
    accelerators=frozenset({"cuda", "cpu"}),
    default_max_ongoing_requests=64,
    modules=("vllm", "PIL"),
    extra="cpu,vision,audio",
    roles={"audio": "audio/generate", "image": "vision/generate"},
    check=check,
)
