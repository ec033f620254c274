"""A ViT that tells which digit a picture shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from demo_models.digits import SIDE, WORDS, as_people_draw, pictures, pixel_values
from demo_models.training import train

STEPS = 1800
BATCH = 128


def make(folder: Path) -> dict[str, float]:
    """Train it, save it in `folder`, and tell the share of held-out pictures that it gets right."""
    torch.manual_seed(1)
    model = ViTForImageClassification(
        ViTConfig(
            image_size=SIDE, patch_size=4, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
            num_attention_heads=4, id2label=dict(enumerate(WORDS)), label2id={word: n for n, word in enumerate(WORDS)},
        )
    )  # fmt: skip
    (drawn, digits), (unseen, answers) = pictures()

    def loss_of(step: int) -> Any:
        chosen = torch.randint(len(drawn), (BATCH,))
        return model(pixel_values=pixel_values(as_people_draw(drawn[chosen])), labels=digits[chosen]).loss

    model.train()
    train("classifier", model.parameters(), loss_of, steps=STEPS, learning_rate=1e-3)
    model.eval()
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return {"held-out pictures named rightly": float((recognised(model, unseen) == answers).float().mean())}


def recognised(model: Any, drawn: Any) -> Any:
    """The digits that the model sees in pictures [n, 1, 32, 32]: int64 [n]."""
    with torch.inference_mode():
        return model(pixel_values=pixel_values(drawn)).logits.argmax(-1)
