"""The digit models on held-out images."""

from __future__ import annotations

from pathlib import Path

import pytest

import demo_models

FOLDER = Path(demo_models.__file__).parent

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread_and_no_hub")]


def test_the_classifier_is_right_for_97_of_100_images() -> None:
    from transformers import ViTForImageClassification

    from demo_models.classifier import predicted_digits
    from demo_models.digits import load_images

    images, digits = load_images()[1]
    model = ViTForImageClassification.from_pretrained(FOLDER / "digits_classifier")
    assert (predicted_digits(model, images) == digits).float().mean() >= 0.97


@pytest.mark.parametrize("number", [1, 2])
def test_the_reader_answers_90_of_100_questions_exactly(number: int) -> None:
    from transformers import AutoTokenizer, Idefics3ForConditionalGeneration

    from demo_models.digits import load_images
    from demo_models.reader import exact_answers

    images, digits = load_images()[1]
    model = Idefics3ForConditionalGeneration.from_pretrained(FOLDER / "digits_reader").float().eval()
    words = AutoTokenizer.from_pretrained(FOLDER / "digits_reader")
    assert exact_answers(model, words, (images[:120], digits[:120]), number) >= 0.9
