"""A language model with random weights, small enough to be loaded in a moment."""

from __future__ import annotations

from pathlib import Path

from rbee_serve.model_files.model_ref import PackageModel, parse_model_ref
from tests.conftest import EMBEDDING_MODEL


def tiny_llama(folder: Path) -> Path:
    """Write the model into `folder`. A token takes 2 KiB of KV cache in float32; its context is 4096 tokens."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = parse_model_ref(EMBEDDING_MODEL)
    assert isinstance(source, PackageModel)
    tokenizer = AutoTokenizer.from_pretrained(source.locate())
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
