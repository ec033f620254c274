"""Embeddings by sentence-transformers, in this process: batches across requests, in a thread of their own."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from deployments.embedding_engine import EmbeddingEngine, EmbeddingOptions, ModelCard, Tokens, Vector
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.registry import import_engine
from rbee_serve.replica.batching import Batcher
from rbee_serve.replica.device import TORCH_NAMES
from rbee_serve.replica.model_files import prepare, refuse_pickles
from rbee_serve.replica.room import require_room, weights_memory_bytes
from rbee_serve.state import LoadProgress
from rbee_serve.worker import LoadContext

BATCH_TOKENS = {"cpu": 1024, "metal": 8192, "cuda": 32_768}
"""Tokens of a batch, padding included, unless `batch_tokens` says otherwise. More of them make a small model on a CPU
hardly faster, but those that come meanwhile wait longer."""

BATCH_OVERHEAD = {"cpu": 48, "metal": 256, "cuda": 2048}
"""What a batch costs beside its tokens, in tokens. Measured for all-MiniLM-L6-v2 on two CPU cores (a text of 20 tokens
takes 14 ms alone, 32 of them take 139); estimated for the others."""

PROBES = ["A text.", "Another text, which is somewhat longer, so that the first one is padded."]


class Options(EmbeddingOptions):
    """`engine:` of a worker on sentence-transformers."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """The type of the weights; as they are stored, for `auto`."""
    max_seq_length: Annotated[int, Field(ge=1)] | None = None
    """The longest text in tokens, where it is to be less than the model's own."""
    attn_implementation: str | None = None
    """Which attention transformers uses, such as `sdpa`."""
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of a batch, padding included."""


def check(worker: WorkerConfig, options: Options) -> None:
    """Raise `ConfigurationError` for what this engine cannot do."""
    if worker.gpus > 1:
        raise ConfigurationError("gpus: sentence-transformers uses one GPU; take replicas for more")


def start(context: LoadContext, options: Options) -> tuple[EmbeddingEngine, ModelCard]:
    """Load the model into this process. Raises `ConfigurationError`, `InsufficientVram`, `InsufficientResources`."""
    worker, device = context.worker, context.device
    assert worker.model_ref is not None
    folder = prepare(worker.model_ref, context.report)
    _refuse_pickles(folder)
    require_room(device, {"weights": weights_memory_bytes(folder, options.dtype)}, device.fraction)
    context.report(LoadProgress(stage="starting_engine"))
    sentence_transformers = import_engine("sentence_transformers", "embedding")
    torch = importlib.import_module("torch")
    if device.backend == "cuda":
        # Ray hands out fractions of a GPU but does not enforce them.
        torch.cuda.set_per_process_memory_fraction(device.fraction)
    context.report(LoadProgress(stage="loading_to_vram"))
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)  # it shows progress bars otherwise
    chosen = {"dtype": options.dtype, "attn_implementation": options.attn_implementation, "use_safetensors": True}
    model = sentence_transformers.SentenceTransformer(
        str(folder),
        device=TORCH_NAMES[device.backend],
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={name: value for name, value in chosen.items() if value is not None},
    )
    if options.max_seq_length:
        model.max_seq_length = min(options.max_seq_length, model.max_seq_length)
    engine = SentenceTransformersEngine(model, options.batch_tokens or BATCH_TOKENS[device.backend], context)
    card = ModelCard(folder, options)
    engine.verify(next(filter(None, card.prompts.values()), ""), worker.id)
    return engine, card


def _refuse_pickles(folder: Path) -> None:
    """The layers above the transformer lie in folders of their own, and may be pickles where it is not."""
    modules = folder / "modules.json"
    for module in json.loads(modules.read_bytes()) if modules.is_file() else ():
        refuse_pickles(folder / str(module["path"]))


class SentenceTransformersEngine:
    """A `SentenceTransformer` and the batches that it works on."""

    def __init__(self, model: Any, batch_tokens: int, context: LoadContext) -> None:
        self._model = model
        self._numpy = importlib.import_module("numpy")
        self._torch = importlib.import_module("torch")
        self._batcher: Batcher[Tokens, Vector] = Batcher(
            self._vectors,
            len,
            budget=batch_tokens,
            overhead=BATCH_OVERHEAD[context.device.backend],
            steps=context.steps,
        )
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
