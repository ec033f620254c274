"""Embeddings with sentence-transformers in this process: batches across requests, in threads of their own."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from deployments.embedding.embedding_engine import EmbeddingOptions, ModelCard, Tokens
from deployments.embedding.packed_attention import CannotPack, packed, use_packed_attention
from deployments.torch_runtime.cuda_graphs import GraphedForward, cuda_recorder
from deployments.torch_runtime.sentence_transformers import ModelOptions, batcher, check_gpus, load_model
from deployments.torch_runtime.text_encoder_needs import text_encoder_needs
from deployments.torch_runtime.vectors import Vector
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import MemoryNeeds
from rbee_serve.worker.spec import LoadContext

logger = logging.getLogger(__name__)

PROBES = ["A text.", "Another text, which is somewhat longer, so that the first one is padded."]

MIN_COSINE = 0.999
"""Of the library's vectors and ours; half precision costs some."""
MIN_PACKED_COSINE = 0.99999
"""Of the library's vectors and packed ones; only the order of sums differs."""

MAX_GRAPH_TOKENS = 8192
"""Tokens of a batch, padding included, above which the GPU is the bottleneck, not the CPU that launches kernels."""
MAX_GRAPHS = 64
"""CUDA graphs to keep, one for each batch size."""


class Options(EmbeddingOptions, ModelOptions):
    """Options of `engine: {name: sentence-transformers}`."""

    enforce_eager: bool = False
    """vLLM's name: true disables CUDA graphs. Otherwise the forward passes of small batches on a GPU are captured as
    CUDA graphs, for a few sizes to which batches are padded."""


def check(worker: WorkerConfig, options: Options) -> None:
    """Raise `ConfigurationError` for what this engine does not support."""
    check_gpus(worker)


def memory_needs(worker: WorkerConfig, options: Options, facts: ModelFacts, gpu_bytes: int) -> MemoryNeeds:
    """See `WorkerSpec.memory`."""
    return text_encoder_needs(options, facts)


def load(context: LoadContext, options: Options) -> SentenceTransformersEngine:
    """Load the model into this process. Raises `ConfigurationError`, `InsufficientVram`, `InsufficientResources`."""
    model, folder = load_model("SentenceTransformer", context, options)
    card = ModelCard(folder, options)
    accelerator = context.device.accelerator
    encoder = _Encoder(
        model,
        packs=accelerator == "cpu" and options.attn_implementation is None,
        graphs=accelerator == "cuda" and not options.enforce_eager,
    )
    encoder.verify(next(filter(None, card.prompts.values()), ""), context.worker.id)
    return SentenceTransformersEngine(encoder, card, context, options)


def rounded(rows: int, longest: int, max_tokens: int) -> tuple[int, int]:
    """The size to which a batch is padded, so that few sizes occur: rows to a power of two, and tokens per row, of
    which there are at most `max_tokens`, to an eighth of one."""
    eighth = max(8, 1 << max(0, longest.bit_length() - 3))
    return 1 << (rows - 1).bit_length(), max(longest, min(max_tokens, -(-longest // eighth) * eighth))


class SentenceTransformersEngine:
    """A `SentenceTransformer` and its batches."""

    def __init__(self, encoder: _Encoder, card: ModelCard, context: LoadContext, options: Options) -> None:
        model = encoder.model
        self._batcher = batcher(encoder.vectors, len, context, options, padded=not encoder.packs)
        self.card = card
        self.tokenizer = model.tokenizer
        self.max_tokens = int(model.max_seq_length)
        self.dimensions = int(model.get_embedding_dimension())

    def embed(self, texts: Sequence[Tokens]) -> AsyncGenerator[Vector, None]:
        """The vector of each text, in order."""
        return self._batcher.results(texts)

    def is_healthy(self) -> bool:
        """Always: the model runs in this process."""
        return True

    def why_unhealthy(self) -> None:
        """Nothing: it always is."""

    def close(self) -> None:
        """End the threads."""
        self._batcher.close()


class _Encoder:
    """`SentenceTransformer.encode` without tokenization; without padding if it `packs`; with CUDA graphs if it
    `graphs`."""

    def __init__(self, model: Any, *, packs: bool, graphs: bool = False) -> None:
        import numpy
        import torch

        self.model = model
        self.packs = packs
        self._graphed = GraphedForward(self._forward, cuda_recorder("cuda"), MAX_GRAPHS) if graphs else None
        self._first_position = 0
        self._numpy: Any = numpy
        self._torch = torch

    def vectors(self, texts: Sequence[Tokens]) -> Vector:
        """A float32 matrix with a row for each text."""
        if self.packs and len(texts) > 1:
            try:
                return self._run(packed(texts, self._first_position))
            except CannotPack:
                self.packs = False
        rows, longest = rounded(len(texts), max(map(len, texts)), int(self.model.max_seq_length))
        if self._graphed is None or rows * longest > MAX_GRAPH_TOKENS:
            return self._run(self._padded(texts))
        features = self._padded([*texts, *[texts[0]] * (rows - len(texts))], longest)
        with self._torch.inference_mode():
            vectors = self._graphed(features["input_ids"], features["attention_mask"])
            return vectors[: len(texts)].float().cpu().numpy()

    def _forward(self, tokens: Any, mask: Any) -> Any:
        return self.model({"input_ids": tokens, "attention_mask": mask})["sentence_embedding"]

    def _padded(self, texts: Sequence[Tokens], longest: int = 0) -> dict[str, Any]:
        numpy, tokenizer = self._numpy, self.model.tokenizer
        longest = longest or max(map(len, texts))
        tokens = numpy.full((len(texts), longest), tokenizer.pad_token_id or 0, dtype=numpy.int64)
        mask = numpy.zeros_like(tokens)
        for row, text in enumerate(texts):
            columns = slice(longest - len(text), None) if tokenizer.padding_side == "left" else slice(len(text))
            tokens[row, columns], mask[row, columns] = text, 1
        features = {"input_ids": self._torch.from_numpy(tokens), "attention_mask": self._torch.from_numpy(mask)}
        return {name: tensor.to(self.model.device) for name, tensor in features.items()}

    def _run(self, features: dict[str, Any]) -> Vector:
        with self._torch.inference_mode():
            return self.model(features)["sentence_embedding"].float().cpu().numpy()

    def verify(self, prompt: str, worker_id: str) -> None:
        """Test whether the model supports packing. Raise `ConfigurationError` if its vectors differ from the library's
        because it processes texts in a way that is not supported here: routing, pooling without the prompt, images."""
        expected = self.model.encode(PROBES, prompt=prompt or None, normalize_embeddings=True)
        probes = self.model.tokenizer([prompt + text for text in PROBES])["input_ids"]
        self.packs = self.packs and self._can_pack(probes, expected)
        if not self._agree(self._run(self._padded(probes)), expected, MIN_COSINE):
            raise ConfigurationError(
                f"worker {worker_id}: this model processes texts in a way that only sentence-transformers itself"
                " supports; choose another model"
            )

    def _can_pack(self, probes: Sequence[Tokens], expected: Vector) -> bool:
        transformer = self.model[0].model
        attention = transformer.config._attn_implementation
        try:
            self._first_position = use_packed_attention(transformer)
            if self._agree(self._run(packed(probes, self._first_position)), expected, MIN_PACKED_COSINE):
                return True
            logger.info("texts are padded: the model's attention crosses the boundary between packed texts")
        except Exception as exc:  # the type depends on the architecture
            logger.info("texts are padded: the model does not support packing: %r", exc)
        transformer.set_attn_implementation(attention)
        return False

    def _agree(self, vectors: Vector, expected: Vector, min_cosine: float) -> bool:
        norms = (vectors * vectors).sum(axis=1) ** 0.5
        return bool(((vectors * expected).sum(axis=1) / norms).min() >= min_cosine)
