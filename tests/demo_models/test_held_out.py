"""What the models of digits make of pictures that none of them was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

import demo_models

FOLDER = Path(demo_models.__file__).parent

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread_and_no_hub")]


def test_the_classifier_names_97_of_100() -> None:
    from transformers import ViTForImageClassification

    from demo_models.classifier import recognised
    from demo_models.digits import pictures

    drawn, digits = pictures()[1]
    model = ViTForImageClassification.from_pretrained(FOLDER / "digits_classifier")
    assert (recognised(model, drawn) == digits).float().mean() >= 0.97


@pytest.mark.parametrize("number", [1, 2])
def test_the_reader_answers_90_of_100_questions_word_by_word(number: int) -> None:
    from transformers import AutoTokenizer, Idefics3ForConditionalGeneration

    from demo_models.digits import pictures
    from demo_models.reader import answered

    drawn, digits = pictures()[1]
    model = Idefics3ForConditionalGeneration.from_pretrained(FOLDER / "digits_reader").float().eval()
    words = AutoTokenizer.from_pretrained(FOLDER / "digits_reader")
    assert answered(model, words, (drawn[:120], digits[:120]), number) >= 0.9
