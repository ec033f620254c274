"""The multimodal worker: texts, images and recordings in, text out, on vLLM; and what other workers derive from that
text: speech and an image."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from deployments.llm.chat_template import ChatTokenizer
from deployments.llm.generation_backend import GenerationBackend
from deployments.multimodal.chat_media import KINDS, MediaDecoders, files, for_template
from deployments.multimodal.derived_outputs import drawn, spoken
from deployments.multimodal.multimodal_request import ImagePart, MediaMessage, MultimodalRequest, Part, TextPart
from deployments.vllm_runtime.cpu_defaults import dtype_default
from deployments.vllm_runtime.engine_memory import engine_bytes
from deployments.vllm_runtime.engine_options import check_engine, sequences_default
from deployments.vllm_runtime.generation_engine import (
    EngineInput,
    GenerationEngine,
    check_option_names,
    load_engine,
)
from deployments.vllm_runtime.media_renderer import MediaRenderer, PlaceholderMismatch, UnreadableMedia
from deployments.vllm_runtime.parallel_sizes import check_parallel_sizes
from deployments.vllm_runtime.planned_needs import vllm_memory_needs
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError, InvalidRequest
from rbee_serve.events import Event
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import MemoryNeeds
from rbee_serve.model_files.resolve import Format, check_local, prepare
from rbee_serve.outputs import AudioChunkOutput, ImageOutput, TokenOutput
from rbee_serve.worker.composition import DerivedOutput, composed
from rbee_serve.worker.memory import MemoryGauge, memory_gauge
from rbee_serve.worker.spec import LoadContext, Peer, WorkerSpec

MAX_ONGOING_REQUESTS = 64
"""Requests that run at once unless the configuration has another number."""

FORMATS: tuple[Format, ...] = ("safetensors",)

Output = TokenOutput | AudioChunkOutput | ImageOutput


class MultimodalBackend(GenerationBackend[MultimodalRequest, Output]):
    """An engine for texts, images and recordings, decoders for these, and the workers that derive other outputs."""

    actor = "multimodal-worker"

    def __init__(self, engine: GenerationEngine, context: LoadContext, memory: MemoryGauge) -> None:
        super().__init__(engine, memory)
        self._peers = context.peers
        self._chat = ChatTokenizer(engine.tokenizer)
        self._renderer = MediaRenderer(engine)
        self._decoders = MediaDecoders()

    async def execute(self, request: MultimodalRequest) -> AsyncGenerator[Event[Output], None]:
        """One `token` for each generated token; `audio` and `image` meanwhile, where they are requested; `metrics`,
        `narration`, and `end` when all is done. Raises `InvalidRequest`, `RequestTooLong`, and the errors of the other
        workers."""
        derived = [self._derived_output(role, request) for role in request.modalities if role != "text"]
        text = self._generate(request)
        stream: AsyncGenerator[Event[Any], None] = composed(text, derived) if derived else text
        async with aclosing(stream) as events:
            async for event in events:
                yield event

    def _derived_output(self, role: str, request: MultimodalRequest) -> DerivedOutput:
        peer: Peer | None = self._peers.get(role)
        if peer is None:
            able = ", ".join(["text", *self._peers])
            remedy = (
                f"this worker answers in {able}; `uses: {{{role}: …}}` in its configuration would name one for more"
            )
            raise InvalidRequest.of_field("modalities", f"of: {able}", remedy)
        options = request.speech if role == "audio" else request.picture
        return (spoken if role == "audio" else drawn)(peer, options.model_dump(exclude_none=True) if options else {})

    async def _engine_input(self, request: MultimodalRequest) -> tuple[EngineInput, str, list[str]]:
        field = "prompt" if request.messages is None else "messages"
        changes: list[str] = []
        return await self._read(request.chat, field, request.max_tokens, changes), field, changes

    async def _read(
        self, chat: list[MediaMessage], field: str, max_tokens: int, changes: list[str] | None = None
    ) -> EngineInput:
        """The chat as the engine's input: tokens, with those of the images and recordings at their placeholders. What
        is left out of a file or changed is appended to `changes`."""
        counts = {kind: len(list(files(chat, kind))) for kind in KINDS}
        self._check_counts(field, counts)
        media = await asyncio.to_thread(self._decoders.decode, chat, field, changes)
        messages = [for_template(message) for message in chat]
        if media and not self._renderer.text_search_off and self._chat.has_control_names(messages):
            raise InvalidRequest.of_field(
                field, "no control tokens", "has the name of a control token beside media; leave the name out"
            )
        tokens = await asyncio.to_thread(self._chat.tokens, messages)
        # Without the tokens of media, which are added below and checked by the caller.
        self._check_length(field, len(tokens), max_tokens)
        try:
            return await self._renderer.render(tokens, media)
        except UnreadableMedia as exc:
            raise InvalidRequest.of_field(field, "media", "the model cannot read these images or recordings") from exc
        except PlaceholderMismatch as exc:
            message = "the chat template has no place for some images or recordings; send them with a user's text"
            raise InvalidRequest.of_field(field, "places for all media", message) from exc

    def _check_counts(self, field: str, counts: dict[str, int]) -> None:
        for kind, count in counts.items():
            limit = self._renderer.limits.get(kind, 0)
            if count > limit:
                able = f"takes at most {limit} of them at once" if limit else "takes none"
                message = f"has {count} x {kind}, but this model {able}"
                raise InvalidRequest.of_field(field, f"{kind} <= {limit}", message)

    def verify(self, worker_id: str) -> None:
        """Raise `ConfigurationError` where the model reads images but its chat template has no place for one."""
        if not self._renderer.limits.get("image"):
            return
        parts: list[Part] = [ImagePart(type="image", image=grey_png()), TextPart(type="text", text="Hello")]
        chat = [MediaMessage(role="user", content=parts)]
        try:
            tokens = self._chat.tokens([for_template(message) for message in chat])
            self._renderer.render_blocking(tokens, self._decoders.decode(chat))
        except (InvalidRequest, UnreadableMedia, PlaceholderMismatch) as exc:
            raise ConfigurationError(
                f"worker {worker_id}: the model's chat template takes no images as parts of a message; choose a model"
                " whose template does"
            ) from exc

    def close(self) -> None:
        """End the engine's processes and the decoders."""
        super().close()
        self._decoders.close()


def grey_png() -> bytes:
    """A grey PNG of 64 x 64 pixels."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(file, "PNG")
    return file.getvalue()


def defaults(context: LoadContext) -> dict[str, Any]:
    """vLLM's options for this worker type, which the configuration may replace."""
    return {
        **dtype_default(context),
        **sequences_default(context, SPEC.default_max_ongoing_requests),
        # vLLM's cache of processed media would take 4 GB in each of two processes.
        "mm_processor_cache_gb": 0,
        # No request has a video, and vLLM reserves memory for the largest one of each kind that it may get.
        "limit_mm_per_prompt": {"video": 0},
    }


def load(context: LoadContext) -> MultimodalBackend:
    """Fetch and check the model's files, then start the engine on them."""
    assert context.worker.model_ref is not None
    check_option_names(context)
    model = prepare(context.worker.model_ref, context.report)
    engine = load_engine(context, model, **defaults(context))
    backend = MultimodalBackend(engine, context, memory_gauge(context.device, engine_bytes))
    backend.verify(context.worker.id)
    return backend


def check(worker: WorkerConfig) -> None:
    """Check the model's files and the engine's options before anything starts."""
    check_local(worker, FORMATS)
    check_engine(worker)
    check_parallel_sizes(worker)


def memory_needs(worker: WorkerConfig, facts: ModelFacts, gpu_bytes: int) -> MemoryNeeds:
    """See `WorkerSpec.memory`."""
    sequences = worker.max_ongoing_requests or MAX_ONGOING_REQUESTS
    return vllm_memory_needs(worker.engine, worker.gpus, sequences, facts, gpu_bytes, images=True)


SPEC = WorkerSpec(
    name="multimodal",
    request=MultimodalRequest,
    outputs=(TokenOutput, AudioChunkOutput, ImageOutput),
    load=load,
    warm_up=lambda: MultimodalRequest(prompt="Hello", max_tokens=2, temperature=0.0),
    # 448: the default model has a context of 512 tokens.
    long_request=lambda: MultimodalRequest(prompt="Count.", max_tokens=448, ignore_eos=True, temperature=0.0),
    accelerators=frozenset({"cuda", "cpu"}),
    default_max_ongoing_requests=MAX_ONGOING_REQUESTS,
    modules=("vllm", "PIL"),
    extra="cpu,vision,audio",
    roles={"audio": "audio/generate", "image": "vision/generate"},
    waits_for_gpu=True,
    check=check,
    memory=memory_needs,
)
