"""A ViT that classifies handwritten digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from demo_models.digits import SIDE, WORDS, augmented, load_images, pixel_values
from demo_models.training import train

STEPS = 1800
BATCH = 128


def make(folder: Path) -> dict[str, float]:
    """Train it, save it in `folder`, and return its accuracy on the held-out images."""
    torch.manual_seed(1)
    model = ViTForImageClassification(
        ViTConfig(
            image_size=SIDE, patch_size=4, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
            num_attention_heads=4, id2label=dict(enumerate(WORDS)), label2id={word: n for n, word in enumerate(WORDS)},
        )
    )  # fmt: skip
    (images, digits), (unseen, answers) = load_images()

    def loss_of(step: int) -> Any:
        chosen = torch.randint(len(images), (BATCH,))
        return model(pixel_values=pixel_values(augmented(images[chosen])), labels=digits[chosen]).loss

    model.train()
    train("classifier", model.parameters(), loss_of, steps=STEPS, learning_rate=1e-3)
    model.eval()
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return {"accuracy on held-out images": float((predicted_digits(model, unseen) == answers).float().mean())}


def predicted_digits(model: Any, images: Any) -> Any:
    """The predicted digits of images [n, 1, 32, 32]: int64 [n]."""
    with torch.inference_mode():
        return model(pixel_values=pixel_values(images)).logits.argmax(-1)
