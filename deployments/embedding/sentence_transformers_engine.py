"""Embeddings by sentence-transformers, in this process: batches across requests, in a thread of their own."""

from __future__ import annotations

import importlib
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from deployments.embedding.embedding_engine import EmbeddingEngine, EmbeddingOptions, ModelCard, Tokens
from deployments.embedding.packed_attention import CannotPack, packed, use_packed_attention
from deployments.torch_runtime.cuda_graphs import GraphedForward, cuda_recorder
from deployments.torch_runtime.sentence_transformers import ModelOptions, batcher, check_gpus, load_model
from deployments.torch_runtime.vectors import Vector
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.worker.spec import LoadContext

logger = logging.getLogger(__name__)

PROBES = ["A text.", "Another text, which is somewhat longer, so that the first one is padded."]

COSINE = 0.999
"""Between the library's vectors and ours, at least; half precision takes some."""
PACKED_COSINE = 0.99999
"""Between the library's vectors and packed ones, at least: nothing but the order of sums is different there."""


MAX_GRAPH_TOKENS = 8192
"""Tokens of a batch, padding included, from which on the GPU is the limit, and not the processor that tells it what to
do."""
MAX_GRAPHS = 64
"""Sizes of batches for which a pass is kept."""


class Options(EmbeddingOptions, ModelOptions):
    """`engine:` of a worker on sentence-transformers."""

    enforce_eager: bool = False
    """Whether a GPU is told each operation of each batch, as vLLM calls it; if not, passes of small batches are
    recorded as CUDA graphs, for a few sizes to which they are padded."""


def check(worker: WorkerConfig, options: Options) -> None:
    """Raise `ConfigurationError` for what this engine cannot do."""
    check_gpus(worker)


def start(context: LoadContext, options: Options) -> tuple[EmbeddingEngine, ModelCard]:
    """Load the model into this process. Raises `ConfigurationError`, `InsufficientVram`, `InsufficientResources`."""
    model, folder = load_model("SentenceTransformer", context, options)
    card = ModelCard(folder, options)
    backend = context.device.accelerator
    encoder = _Encoder(
        model,
        packs=backend == "cpu" and options.attn_implementation is None,
        graphs=backend == "cuda" and not options.enforce_eager,
    )
    encoder.verify(next(filter(None, card.prompts.values()), ""), context.worker.id)
    return SentenceTransformersEngine(encoder, context, options), card


def rounded(rows: int, longest: int, most: int) -> tuple[int, int]:
    """The size to which a batch is padded that is to be like others: rows to a power of two, and the tokens of each, of
    which there may be `most`, to an eighth of one."""
    eighth = max(8, 1 << max(0, longest.bit_length() - 3))
    return 1 << (rows - 1).bit_length(), max(longest, min(most, -(-longest // eighth) * eighth))


class SentenceTransformersEngine:
    """A `SentenceTransformer` and the batches that it works on."""

    def __init__(self, encoder: _Encoder, context: LoadContext, options: Options) -> None:
        model = encoder.model
        self._batcher = batcher(encoder.vectors, len, context, options, padded=not encoder.packs)
        self.tokenizer = model.tokenizer
        self.max_tokens = int(model.max_seq_length)
        self.dimensions = int(model.get_embedding_dimension())

    def embed(self, texts: Sequence[Tokens]) -> AsyncGenerator[Vector, None]:
        """The vector of each text, in order."""
        return self._batcher.results(texts)

    def is_healthy(self) -> bool:
        """It lives and dies with this process."""
        return True

    def close(self) -> None:
        """End the thread."""
        self._batcher.close()


class _Encoder:
    """What `SentenceTransformer.encode` does, less reading the texts anew; less the padding, if it `packs`; by passes
    that were recorded before, if it `graphs`."""

    def __init__(self, model: Any, *, packs: bool, graphs: bool = False) -> None:
        self.model = model
        self.packs = packs
        self._graphed = GraphedForward(self._pass, cuda_recorder("cuda"), MAX_GRAPHS) if graphs else None
        self._first_position = 0
        self._numpy = importlib.import_module("numpy")
        self._torch = importlib.import_module("torch")

    def vectors(self, texts: Sequence[Tokens]) -> Vector:
        """A matrix with a row for each text."""
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
            found = self._graphed(features["input_ids"], features["attention_mask"])
            return found[: len(texts)].float().cpu().numpy()

    def _pass(self, tokens: Any, mask: Any) -> Any:
        return self.model({"input_ids": tokens, "attention_mask": mask})["sentence_embedding"]

    def _padded(self, texts: Sequence[Tokens], longest: int = 0) -> dict[str, Any]:
        numpy, tokenizer = self._numpy, self.model.tokenizer
        longest = longest or max(map(len, texts))
        tokens = numpy.full((len(texts), longest), tokenizer.pad_token_id or 0, dtype=numpy.int64)
        mask = numpy.zeros_like(tokens)
        for row, text in enumerate(texts):
            place = slice(longest - len(text), None) if tokenizer.padding_side == "left" else slice(len(text))
            tokens[row, place], mask[row, place] = text, 1
        features = {"input_ids": self._torch.from_numpy(tokens), "attention_mask": self._torch.from_numpy(mask)}
        return {name: tensor.to(self.model.device) for name, tensor in features.items()}

    def _run(self, features: dict[str, Any]) -> Vector:
        with self._torch.inference_mode():
            return self.model(features)["sentence_embedding"].float().cpu().numpy()

    def verify(self, prompt: str, worker_id: str) -> None:
        """Find out whether the model's texts can be packed. Raise `ConfigurationError` where it reads them in a way of
        its own, which is not done here: several routes, pooling without the prompt, pictures."""
        expected = self.model.encode(PROBES, prompt=prompt or None, normalize_embeddings=True)
        probes = self.model.tokenizer([prompt + text for text in PROBES])["input_ids"]
        self.packs = self.packs and self._can_pack(probes, expected)
        if not self._agree(self._run(self._padded(probes)), expected, COSINE):
            raise ConfigurationError(
                f"worker {worker_id}: this model reads texts in a way that only sentence-transformers itself knows;"
                " choose another model"
            )

    def _can_pack(self, probes: Sequence[Tokens], expected: Vector) -> bool:
        transformer = self.model[0].model
        attention = transformer.config._attn_implementation
        try:
            self._first_position = use_packed_attention(transformer)
            if self._agree(self._run(packed(probes, self._first_position)), expected, PACKED_COSINE):
                return True
            logger.info("texts are padded: the model does not see the border between packed ones")
        except Exception as exc:  # another architecture, another error
            logger.info("texts are padded: the model cannot take them packed: %r", exc)
        transformer.set_attn_implementation(attention)
        return False

    def _agree(self, found: Vector, expected: Vector, cosine: float) -> bool:
        """Whether the vectors have the directions that they should have."""
        norms = (found * found).sum(axis=1) ** 0.5
        return bool(((found * expected).sum(axis=1) / norms).min() >= cosine)
