"""Tiny models with random weights, always the same, in the form that transformers loads: a ViT, a CLIP, a SigLIP."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipTokenizer,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

LABELS = 1000
TOKENS = 77
"""The most tokens for CLIP; for SigLIP it is 64."""
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
IMAGE = {"image_size": 32, "patch_size": 8}
SQUARE = {"height": 32, "width": 32}


def random_vit(folder: Path, **more: Any) -> Path:
    """A classifier of a thousand labels, named `kind 0` to `kind 999`."""
    names = {index: f"kind {index}" for index in range(more.pop("labels", LABELS))}
    config = ViTConfig(**SIZES, **IMAGE, id2label=names, label2id={name: n for n, name in names.items()}, **more)
    return _saved(ViTForImageClassification, config, folder, ViTImageProcessor(size=SQUARE))


def random_clip(folder: Path) -> Path:
    """A CLIP with a token for each letter."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    text = {**SIZES, **ends, "vocab_size": len(words), "max_position_embeddings": TOKENS}
    config = CLIPConfig(text_config=text, vision_config={**SIZES, **IMAGE}, projection_dim=24)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    return _saved(CLIPModel, config, folder, processor, tokenizer)


def random_siglip(folder: Path) -> Path:
    """A SigLIP with a small vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = folder / "pieces.model"
    pieces.write_bytes(_pieces(["a photo of a cat and a dog", "this is the image that shows one or two of them"] * 9))
    text = {**SIZES, "vocab_size": 60, "max_position_embeddings": 64, "projection_size": 32}
    config = SiglipConfig(text_config=text, vision_config={**SIZES, **IMAGE})
    tokenizer = SiglipTokenizer(str(pieces), model_input_names=["input_ids"])
    return _saved(SiglipModel, config, folder, SiglipImageProcessor(size=SQUARE), tokenizer)


def _pieces(sentences: Iterable[str]) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=2,
        pad_id=-1, bos_id=-1, eos_id=1, unk_id=2, control_symbols=["<ctrl>"],
    )  # fmt: skip
    return model.getvalue()


def _saved(kind: Any, config: Any, folder: Path, *parts: Any) -> Path:
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:  # so large that different inputs give different outputs
                weight.normal_(0, 0.3)
            elif name == "logit_scale":
                weight.fill_(1.5)
            elif name == "logit_bias":
                weight.fill_(-0.5)
    for part in (model, *parts):
        part.save_pretrained(folder)
    return folder
