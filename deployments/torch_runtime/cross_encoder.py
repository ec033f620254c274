"""Cross-encoders of sentence-transformers in this process: score pairs of texts, in batches across requests."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

from deployments.torch_runtime.literal_text import ControlNames, canonical, literal_tokenizer
from deployments.torch_runtime.sentence_transformers import ModelOptions, batcher, check_gpus, load_model
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.worker.spec import LoadContext

Options = ModelOptions


class Pair(NamedTuple):
    """The model's input: a query and a document, and their length together in tokens."""

    query: str
    document: str
    tokens: int


def check(worker: WorkerConfig, options: Options) -> None:
    """Raise `ConfigurationError` for what this engine does not support."""
    check_gpus(worker)


def load(context: LoadContext, options: Options) -> CrossEncoderEngine:
    """Load the model into this process. Raises `ConfigurationError` for one that does not score pairs, and what
    `load_model` raises."""
    model, _ = load_model("CrossEncoder", context, options)
    if model.num_labels != 1:
        raise ConfigurationError(
            f"worker {context.worker.id}: a reranker's model gives one score, this one gives {model.num_labels}; "
            "choose a cross-encoder for reranking"
        )
    return CrossEncoderEngine(model, context, options)


class CrossEncoderEngine:
    """A `CrossEncoder` and its batches."""

    def __init__(self, model: Any, context: LoadContext, options: Options) -> None:
        self._model = model
        self._batcher = batcher(self._predict, lambda pair: pair.tokens, context, options)
        # A chat template around the texts has control tokens of its own, which the tokenizer has to read.
        self._has_template = "message" in getattr(model[0], "modality_config", ())
        self._control_names = ControlNames(model.tokenizer)
        if not self._has_template:
            literal_tokenizer(model.tokenizer)
        # A copy, because a tokenizer is not thread-safe and the batches use the model's own.
        self._tokenizer = copy.deepcopy(model.tokenizer)
        self.max_tokens = int(model.max_seq_length)
        """The longest supported pair, in tokens."""
        self._template_tokens = 0
        template_and_pair = model.preprocess([("a", "a")])["input_ids"].shape[1]
        self._template_tokens = template_and_pair - self.lengths("a", ["a"])[0]

    def literal(self, text: str) -> str:
        """A user's text as it goes into a `Pair`: in canonical form, and without control tokens."""
        text = canonical(text)
        return self._control_names.split(text) if self._has_template else text

    def lengths(self, query: str, documents: Sequence[str]) -> list[int]:
        """Tokens of the query together with each document. Used from one thread."""
        pairs = self._tokenizer([query] * len(documents), documents, padding=False, truncation=False, verbose=False)
        return [len(tokens) + self._template_tokens for tokens in pairs["input_ids"]]

    def scores(self, pairs: Sequence[Pair]) -> AsyncGenerator[float, None]:
        """The score of each pair, in order. Closing the generator cancels the work."""
        return self._batcher.results(pairs)

    def _predict(self, pairs: Sequence[Pair]) -> list[float]:
        texts = [(pair.query, pair.document) for pair in pairs]
        scores = self._model.predict(texts, batch_size=len(texts), show_progress_bar=False)
        return [float(score) for score in scores]

    def close(self) -> None:
        """End the threads."""
        self._batcher.close()
