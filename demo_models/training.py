"""The training loop of the three models: AdamW with warm-up and a cosine schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

WARM_UP_STEPS = 100
"""Steps of the warm-up of the learning rate."""


def train(
    name: str,
    parameters: Iterable[Any],
    loss_of: Callable[[int], Any],
    *,
    steps: int,
    learning_rate: float,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Minimise `loss_of(step)` in `steps` steps and print the progress; `after` is called after each step."""
    weights = list(parameters)
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    began, mean = time.monotonic(), None
    for step in range(steps):
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        after()
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - began
            print(f"{name}: step {step + 1} of {steps}, loss {mean:.4f}, {seconds:.0f} s", flush=True)


def _rate(step: int, steps: int) -> float:
    if step < WARM_UP_STEPS:
        return (step + 1) / WARM_UP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - WARM_UP_STEPS) / max(1, steps - WARM_UP_STEPS)))
