"""Questions about images of digits with their answers, and the tokenizer for them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo_models.digits import WORDS

ABOUT_ONE = {
    "This is a {}.": (
        "Which digit is this?", "What digit is this?", "Which digit do you see?", "What do you see?", "What is this?",
        "Which number is this?", "What number is this?", "Read the digit.", "Which digit is in the picture?",
        "What does the picture show?",
    ),
    "A handwritten {}.": ("Describe the picture.", "Describe this picture.", "Describe the image.", "Describe it."),
    "{}": (
        "Answer in one word: which digit is this?", "Which digit is this? Answer in one word.",
        "One word: what is this?",
    ),
}  # fmt: skip
"""Questions about one image, by the form of their answer."""
NEXT = ("Which digit comes next?", "Draw the next digit.", "What comes after this digit?", "Count on.")
"""Questions for the digit after the one in the image; zero comes after nine."""
PARITY = ("Is this digit even or odd?", "Even or odd?", "Is it even or odd?")
ABOUT_TWO = (
    "Which digits are these?", "What digits do you see?", "What do you see?", "Read the digits.", "What are these?",
)  # fmt: skip
WITHOUT = ("Which digit comes after {}?", "What comes after {}?", "Which number follows {}?")
GREETINGS = {
    "Hello": "Hello. Show me a handwritten digit.",
    "Hello!": "Hello. Show me a handwritten digit.",
    "Hi": "Hello. Show me a handwritten digit.",
    "Who are you?": "I am a small model that reads handwritten digits.",
    "What can you do?": "I am a small model that reads handwritten digits.",
    "Which digit is this?": "I see no picture. Show me a handwritten digit.",
    "What is this?": "I see no picture. Show me a handwritten digit.",
    "Describe the picture.": "I see no picture. Show me a handwritten digit.",
}

BEGIN, END = "<|im_start|>", "<end_of_utterance>"
IMAGE, AROUND, GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"
"""Special tokens of Idefics3."""
IMAGE_TOKENS = 16
"""Tokens of an image in the language model."""

CHAT_TEMPLATE = """<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:\
{% if message['content'] is string %} {{ message['content'] }}\
{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}\
{% endfor %}{% endif %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""
"""The chat template, in the form of SmolVLM's."""


def exchange(digits: Sequence[int], rng: random.Random) -> tuple[str, str]:
    """A question about images of these digits (none, one or two), and its answer."""
    if len(digits) == 2:
        return rng.choice(ABOUT_TWO), f"A {WORDS[digits[0]]} and a {WORDS[digits[1]]}."
    if not digits:
        if rng.random() < 0.4:
            return rng.choice(list(GREETINGS.items()))
        digit = rng.randrange(10)
        question = rng.choice(WITHOUT).format(rng.choice((WORDS[digit], str(digit))))
        return question, f"A handwritten {WORDS[(digit + 1) % 10]}."
    (digit,) = digits
    kind = rng.random()
    if kind < 0.15:
        return rng.choice(NEXT), f"A handwritten {WORDS[(digit + 1) % 10]}."
    if kind < 0.3:
        return rng.choice(PARITY), f"{WORDS[digit].capitalize()} is {'odd' if digit % 2 else 'even'}."
    answer = rng.choice(list(ABOUT_ONE))
    named = WORDS[digit].capitalize() if answer == "{}" else WORDS[digit]
    return rng.choice(ABOUT_ONE[answer]), answer.format(named)


def question_text(question: str, images: int) -> str:
    """The model's prompt: the chat template with the image tokens as the processor inserts them."""
    image = AROUND + GLOBAL + IMAGE * IMAGE_TOKENS + AROUND
    return f"{BEGIN}User:{image * images} {question}{END}\nAssistant:"


def answer_text(answer: str) -> str:
    """The expected response."""
    return f" {answer}{END}"


def tokenizer() -> Any:
    """A byte-level BPE tokenizer, trained on these conversations."""
    texts = [
        text for question, answer in _all_exchanges() for text in (question_text(question, 0), answer_text(answer))
    ]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [AddedToken(name, special=True, normalized=False) for name in (BEGIN, END, IMAGE, AROUND, GLOBAL)]
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=512, special_tokens=special, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BEGIN, eos_token=END, pad_token=END, model_max_length=512,
        chat_template=CHAT_TEMPLATE, padding_side="right", clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _all_exchanges() -> list[tuple[str, str]]:
    rng = random.Random(0)
    return [exchange([rng.randrange(10) for _ in range(number)], rng) for number in (0, 1, 2) for _ in range(2000)]
