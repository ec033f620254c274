"""Embeddings by sentence-transformers, in this process: batches across requests, in a thread of their own."""

from __future__ import annotations

import importlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from deployments.embedding_engine import EmbeddingEngine, EmbeddingOptions, ModelCard, Tokens, Vector
from deployments.sentence_transformers_model import ModelOptions, batcher, check_gpus, load_model
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.worker import LoadContext

PROBES = ["A text.", "Another text, which is somewhat longer, so that the first one is padded."]


class Options(EmbeddingOptions, ModelOptions):
    """`engine:` of a worker on sentence-transformers."""


def check(worker: WorkerConfig, options: Options) -> None:
    """Raise `ConfigurationError` for what this engine cannot do."""
    check_gpus(worker)


def start(context: LoadContext, options: Options) -> tuple[EmbeddingEngine, ModelCard]:
    """Load the model into this process. Raises `ConfigurationError`, `InsufficientVram`, `InsufficientResources`."""
    model, folder = load_model("SentenceTransformer", context, options)
    engine = SentenceTransformersEngine(model, context, options)
    card = ModelCard(folder, options)
    engine.verify(next(filter(None, card.prompts.values()), ""), context.worker.id)
    return engine, card


class SentenceTransformersEngine:
    """A `SentenceTransformer` and the batches that it works on."""

    def __init__(self, model: Any, context: LoadContext, options: Options) -> None:
        self._model = model
        self._numpy = importlib.import_module("numpy")
        self._torch = importlib.import_module("torch")
        self._batcher = batcher(self._vectors, len, context, options)
        self.tokenizer = model.tokenizer
        self.max_tokens = int(model.max_seq_length)
        self.dimensions = int(model.get_embedding_dimension())

    def embed(self, texts: Sequence[Tokens]) -> AsyncGenerator[Vector, None]:
        """The vector of each text, in order."""
        return self._batcher.results(texts)

    def _vectors(self, texts: Sequence[Tokens]) -> Vector:
        """A matrix with a row for each text. What `SentenceTransformer.encode` does, less reading the texts anew."""
        numpy, torch = self._numpy, self._torch
        longest = max(map(len, texts))
        tokens = numpy.full((len(texts), longest), self.tokenizer.pad_token_id or 0, dtype=numpy.int64)
        mask = numpy.zeros_like(tokens)
        for row, text in enumerate(texts):
            place = slice(longest - len(text), None) if self.tokenizer.padding_side == "left" else slice(len(text))
            tokens[row, place], mask[row, place] = text, 1
        with torch.inference_mode():
            features = {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(mask)}
            features = {name: tensor.to(self._model.device) for name, tensor in features.items()}
            return self._model(features)["sentence_embedding"].float().cpu().numpy()

    def verify(self, prompt: str, worker_id: str) -> None:
        """Raise `ConfigurationError` where the model reads texts in a way of its own, which is not done here: several
        routes, pooling without the prompt, pictures."""
        expected = self._model.encode(PROBES, prompt=prompt or None, normalize_embeddings=True)
        found = self._vectors(self.tokenizer([prompt + text for text in PROBES])["input_ids"])
        norms = (found * found).sum(axis=1) ** 0.5
        if ((found * expected).sum(axis=1) / norms).min() < 0.999:
            raise ConfigurationError(
                f"worker {worker_id}: this model reads texts in a way that only sentence-transformers itself knows;"
                " choose another model"
            )

    def is_healthy(self) -> bool:
        """It lives and dies with this process."""
        return True

    def close(self) -> None:
        """End the thread."""
        self._batcher.close()
