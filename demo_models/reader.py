"""An Idefics3 that answers questions about images of digits."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
)

from demo_models.conversations import CHAT_TEMPLATE, IMAGE_TOKENS, answer_text, exchange, question_text, tokenizer
from demo_models.digits import SIDE, WORDS, augmented, load_images, pixel_values
from demo_models.training import train

VISION_STEPS = 800
VISION_BATCH = 128
STEPS = 1500
BATCH = 64
PATCH = 4
SCALE = 2
"""Patches per side that are merged into one token of the language model."""
TOKENS = 80
"""Maximal length of a conversation with two images."""
IGNORED = -100
"""The label of tokens without a loss."""


def make(folder: Path) -> dict[str, float]:
    """Train it, save it in `folder` in half precision, and return the share of questions about held-out images that it
    answers exactly, by the number of images in a question."""
    torch.manual_seed(3)
    rng = random.Random(3)
    bpe = tokenizer()
    model = Idefics3ForConditionalGeneration(_config(bpe))
    (images, digits), held_out = load_images()

    def loss_of(step: int) -> Any:
        number = rng.choices((0, 1, 2), (1, 8, 2))[0]
        chosen = torch.randint(len(images), (BATCH, number))
        shown = augmented(images[chosen.flatten()]) if number else None
        pairs = [exchange(row.tolist(), rng) for row in digits[chosen]]
        return model(**_inputs(bpe, pairs, number), **_images(shown, number)).loss

    model.train()
    _pretrain_vision(model, images, digits)
    train("reader", model.parameters(), loss_of, steps=STEPS, learning_rate=1e-3)
    model.eval()
    _processor(bpe).save_pretrained(folder)
    model.generation_config = GenerationConfig(
        bos_token_id=bpe.bos_token_id, eos_token_id=bpe.eos_token_id, pad_token_id=bpe.pad_token_id,
        do_sample=False,
    )  # fmt: skip
    model.to(torch.float16).save_pretrained(folder)
    model.float()
    return {
        f"exact answers about {number} held-out images": exact_answers(model, bpe, held_out, number)
        for number in (1, 2)
    }


def exact_answers(model: Any, bpe: Any, held_out: tuple[Any, Any], number: int) -> float:
    """The share of 360 questions about `number` images that are answered exactly."""
    rng = random.Random(4)
    images, digits = held_out
    correct, total = 0, 0
    for start in range(0, len(images), number):
        shown = digits[start : start + number].tolist()
        if len(shown) < number:
            break
        question, answer = exchange(shown, rng)
        tokens = bpe(question_text(question, number), return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            generated = model.generate(
                **tokens, **_images(images[start : start + number], number), max_new_tokens=20, do_sample=False
            )
        correct += bpe.decode(generated[0, tokens.input_ids.shape[1] :], skip_special_tokens=True).strip() == answer
        total += 1
    return correct / total


def _pretrain_vision(model: Any, images: Any, digits: Any) -> None:
    """Pretrain the vision model and the connector as a digit classifier, before the language model: trained together
    from the beginning they take several times as long."""
    head = torch.nn.Linear(model.config.text_config.hidden_size, len(WORDS))
    side = SIDE // PATCH
    vision = torch.nn.ModuleList([model.model.vision_model, model.model.connector, head])

    def loss_of(step: int) -> Any:
        chosen = torch.randint(len(images), (VISION_BATCH,))
        patches = model.model.vision_model(
            pixel_values=pixel_values(augmented(images[chosen])),
            patch_attention_mask=torch.ones(VISION_BATCH, side, side, dtype=torch.bool),
        ).last_hidden_state
        return functional.cross_entropy(head(model.model.connector(patches).mean(1)), digits[chosen])

    train("vision", vision.parameters(), loss_of, steps=VISION_STEPS, learning_rate=1e-3)


def _config(bpe: Any) -> Any:
    return Idefics3Config(
        image_token_id=bpe.convert_tokens_to_ids("<image>"), scale_factor=SCALE, tie_word_embeddings=False,
        pad_token_id=bpe.pad_token_id,
        vision_config={
            "image_size": SIDE, "patch_size": PATCH, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 4, "num_attention_heads": 2,
        },
        text_config={
            "model_type": "llama", "vocab_size": len(bpe), "hidden_size": 96, "intermediate_size": 256,
            "num_hidden_layers": 4, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 32,
            "max_position_embeddings": 512, "tie_word_embeddings": False, "bos_token_id": bpe.bos_token_id,
            "eos_token_id": bpe.eos_token_id, "pad_token_id": bpe.pad_token_id,
        },
    )  # fmt: skip


def _processor(bpe: Any) -> Any:
    edge = {"longest_edge": SIDE}
    image_processor = Idefics3ImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False)
    return Idefics3Processor(image_processor, bpe, image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)


def _inputs(bpe: Any, pairs: list[tuple[str, str]], number: int) -> dict[str, Any]:
    """Conversations as tokens, padded on the right; only the response has labels."""
    rows, labels = [], []
    for question, answer in pairs:
        prompt = bpe.encode(question_text(question, number), add_special_tokens=False)
        response = bpe.encode(answer_text(answer), add_special_tokens=False)
        rows.append(prompt + response)
        labels.append([IGNORED] * len(prompt) + response)
    longest = max(len(row) for row in rows)
    assert longest <= TOKENS
    return {
        "input_ids": torch.tensor([row + [bpe.pad_token_id] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        "labels": torch.tensor([row + [IGNORED] * (longest - len(row)) for row in labels]),
    }


def _images(images: Any, number: int) -> dict[str, Any]:
    """The images of each conversation: [n, number, 3, 32, 32]."""
    if not number:
        return {}
    values = pixel_values(images).unflatten(0, (-1, number))
    return {"pixel_values": values, "pixel_attention_mask": torch.ones(*values.shape[:2], SIDE, SIDE, dtype=torch.bool)}
