"""Texts of clients: sentences of frequent words, each of them new, the same in every run."""

from __future__ import annotations

import random
from collections.abc import Iterator

WORDS = (
    "the a of and in to was it that for on with as his they at be this from have or by one had not but what "
    "all were when we there can an your which their said if do will each about how up out them then she many "
    "some so these would other into has more her two like him see time could no make than first been its who "
    "now people my made over did down only way find use may water long little very after word called just "
    "where most know"
).split()


def sentences(fewest: int, most: int) -> Iterator[str]:
    """An endless iterator of sentences of `fewest` to `most` words."""
    generator = random.Random(0)
    while True:
        yield " ".join(generator.choices(WORDS, k=generator.randint(fewest, most))).capitalize() + "."
