"""An Idefics3 that answers questions about pictures of digits."""

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

from demo_models.conversations import CHAT_TEMPLATE, PICTURE_TOKENS, answer_text, exchange, question_text, tokenizer
from demo_models.digits import SIDE, WORDS, as_people_draw, pictures, pixel_values
from demo_models.training import train

SEEING_STEPS = 800
SEEING_BATCH = 128
STEPS = 1500
BATCH = 64
PATCH = 4
SCALE = 2
"""Patches of a side that become one token of the language model."""
TOKENS = 80
"""The longest conversation with two pictures."""
IGNORED = -100
"""The label of a token that nobody is asked to say."""


def make(folder: Path) -> dict[str, float]:
    """Train it, save it in `folder` in half precision, and tell the share of questions about held-out pictures that it
    answers rightly, word by word, by the number of pictures in a question."""
    torch.manual_seed(3)
    chance = random.Random(3)
    words = tokenizer()
    model = Idefics3ForConditionalGeneration(_config(words))
    (drawn, digits), unseen = pictures()

    def loss_of(step: int) -> Any:
        number = chance.choices((0, 1, 2), (1, 8, 2))[0]
        chosen = torch.randint(len(drawn), (BATCH, number))
        shown = as_people_draw(drawn[chosen.flatten()]) if number else None
        pairs = [exchange(asked.tolist(), chance) for asked in digits[chosen]]
        return model(**_inputs(words, pairs, number), **_shown(shown, number)).loss

    model.train()
    _learn_to_see(model, drawn, digits)
    train("reader", model.parameters(), loss_of, steps=STEPS, learning_rate=1e-3)
    model.eval()
    _processor(words).save_pretrained(folder)
    model.generation_config = GenerationConfig(
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
        do_sample=False,
    )  # fmt: skip
    model.to(torch.float16).save_pretrained(folder)
    model.float()
    return {f"answers about {number} held-out pictures": answered(model, words, unseen, number) for number in (1, 2)}


def answered(model: Any, words: Any, unseen: tuple[Any, Any], number: int) -> float:
    """The share of 360 questions about `number` pictures that are answered word by word as expected."""
    chance = random.Random(4)
    drawn, digits = unseen
    right, asked = 0, 0
    for start in range(0, len(drawn), number):
        named = digits[start : start + number].tolist()
        if len(named) < number:
            break
        question, answer = exchange(named, chance)
        tokens = words(question_text(question, number), return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            said = model.generate(
                **tokens, **_shown(drawn[start : start + number], number), max_new_tokens=20, do_sample=False
            )
        right += words.decode(said[0, tokens.input_ids.shape[1] :], skip_special_tokens=True).strip() == answer
        asked += 1
    return right / asked


def _learn_to_see(model: Any, drawn: Any, digits: Any) -> None:
    """Train what turns a picture into tokens to tell digits apart, before the language model is taught to speak of
    them: together from the beginning they take several times as long."""
    head = torch.nn.Linear(model.config.text_config.hidden_size, len(WORDS))
    side = SIDE // PATCH
    sight = torch.nn.ModuleList([model.model.vision_model, model.model.connector, head])

    def loss_of(step: int) -> Any:
        chosen = torch.randint(len(drawn), (SEEING_BATCH,))
        patches = model.model.vision_model(
            pixel_values=pixel_values(as_people_draw(drawn[chosen])),
            patch_attention_mask=torch.ones(SEEING_BATCH, side, side, dtype=torch.bool),
        ).last_hidden_state
        return functional.cross_entropy(head(model.model.connector(patches).mean(1)), digits[chosen])

    train("sight", sight.parameters(), loss_of, steps=SEEING_STEPS, learning_rate=1e-3)


def _config(words: Any) -> Any:
    return Idefics3Config(
        image_token_id=words.convert_tokens_to_ids("<image>"), scale_factor=SCALE, tie_word_embeddings=False,
        pad_token_id=words.pad_token_id,
        vision_config={
            "image_size": SIDE, "patch_size": PATCH, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 4, "num_attention_heads": 2,
        },
        text_config={
            "model_type": "llama", "vocab_size": len(words), "hidden_size": 96, "intermediate_size": 256,
            "num_hidden_layers": 4, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 32,
            "max_position_embeddings": 512, "tie_word_embeddings": False, "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id,
        },
    )  # fmt: skip


def _processor(words: Any) -> Any:
    edge = {"longest_edge": SIDE}
    pictures_of = Idefics3ImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False)
    return Idefics3Processor(pictures_of, words, image_seq_len=PICTURE_TOKENS, chat_template=CHAT_TEMPLATE)


def _inputs(words: Any, pairs: list[tuple[str, str]], number: int) -> dict[str, Any]:
    """Conversations as tokens, padded on the right; only what the model says has labels."""
    rows, labels = [], []
    for question, answer in pairs:
        asked = words.encode(question_text(question, number), add_special_tokens=False)
        said = words.encode(answer_text(answer), add_special_tokens=False)
        rows.append(asked + said)
        labels.append([IGNORED] * len(asked) + said)
    longest = max(len(row) for row in rows)
    assert longest <= TOKENS
    return {
        "input_ids": torch.tensor([row + [words.pad_token_id] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        "labels": torch.tensor([row + [IGNORED] * (longest - len(row)) for row in labels]),
    }


def _shown(drawn: Any, number: int) -> dict[str, Any]:
    """The pictures of each conversation: [n, number, 3, 32, 32]."""
    if not number:
        return {}
    values = pixel_values(drawn).unflatten(0, (-1, number))
    return {"pixel_values": values, "pixel_attention_mask": torch.ones(*values.shape[:2], SIDE, SIDE, dtype=torch.bool)}
