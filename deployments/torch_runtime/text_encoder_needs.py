"""What a text encoder on sentence-transformers needs of its GPU: for embeddings and for reranking."""

from __future__ import annotations

from deployments.torch_runtime.encoder_memory import batch_bytes
from deployments.torch_runtime.loaded_type import element_bytes
from deployments.torch_runtime.sentence_transformers import BATCH_TOKENS, ModelOptions
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import MemoryNeeds
from rbee_serve.memory_plan.transformer_config import POSITIONS, dimension

DEFAULT_LENGTH = 512
"""The longest text of a model whose files do not have it."""


def text_encoder_needs(options: ModelOptions, facts: ModelFacts) -> MemoryNeeds:
    """The weights, and a full batch of the longest texts."""
    own = dimension(facts.config("sentence_bert_config.json"), ("max_seq_length",))
    longest = own or dimension(facts.config(), POSITIONS) or DEFAULT_LENGTH
    longest = min(longest, options.max_seq_length or longest)
    tokens = max(options.batch_tokens or BATCH_TOKENS["cuda"], longest)
    count = batch_bytes(
        facts.config(), tokens=tokens, longest=longest, element_bytes=element_bytes(options.dtype, facts)
    )
    return MemoryNeeds(
        weights=facts.weights_figure(options.dtype),
        activations=None if count is None else facts.config_figure(count, f"a batch of {tokens} tokens"),
    )
