"""A language model of negligible cost, to measure the path to the engine."""

from __future__ import annotations

from pathlib import Path


def make(tokenizer: Path, folder: Path) -> Path:
    """A Llama of one layer, 64 wide, with random weights and the tokenizer of the model at `tokenizer`."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    texts = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(
        vocab_size=len(texts),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=texts.bos_token_id,
        eos_token_id=texts.eos_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    texts.save_pretrained(folder)
    return folder
