"""What is asked about pictures of digits, and how it is answered; and the tokenizer that reads it."""

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
"""Questions about one picture, by the form of their answer."""
NEXT = ("Which digit comes next?", "Draw the next digit.", "What comes after this digit?", "Count on.")
"""Answered with the digit after the one in the picture; zero comes after nine."""
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
"""Tokens that Idefics3 gives a meaning."""
PICTURE_TOKENS = 16
"""What a picture becomes for the language model."""

CHAT_TEMPLATE = """<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:\
{% if message['content'] is string %} {{ message['content'] }}\
{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}\
{% endfor %}{% endif %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""
"""Chats as texts, in the way of SmolVLM."""


def exchange(digits: Sequence[int], chance: random.Random) -> tuple[str, str]:
    """A question about pictures of these digits, none, one or two, and its answer."""
    if len(digits) == 2:
        return chance.choice(ABOUT_TWO), f"A {WORDS[digits[0]]} and a {WORDS[digits[1]]}."
    if not digits:
        if chance.random() < 0.4:
            return chance.choice(list(GREETINGS.items()))
        digit = chance.randrange(10)
        asked = chance.choice(WITHOUT).format(chance.choice((WORDS[digit], str(digit))))
        return asked, f"A handwritten {WORDS[(digit + 1) % 10]}."
    (digit,) = digits
    kind = chance.random()
    if kind < 0.15:
        return chance.choice(NEXT), f"A handwritten {WORDS[(digit + 1) % 10]}."
    if kind < 0.3:
        return chance.choice(PARITY), f"{WORDS[digit].capitalize()} is {'odd' if digit % 2 else 'even'}."
    answer = chance.choice(list(ABOUT_ONE))
    named = WORDS[digit].capitalize() if answer == "{}" else WORDS[digit]
    return chance.choice(ABOUT_ONE[answer]), answer.format(named)


def question_text(question: str, pictures: int) -> str:
    """What the model reads before it answers: the chat template with each picture's place as the processor fills it."""
    place = AROUND + GLOBAL + IMAGE * PICTURE_TOKENS + AROUND
    return f"{BEGIN}User:{place * pictures} {question}{END}\nAssistant:"


def answer_text(answer: str) -> str:
    """What it is to say."""
    return f" {answer}{END}"


def tokenizer() -> Any:
    """A byte-level tokenizer that knows the words of these conversations."""
    known = [
        text for question, answer in _all_exchanges() for text in (question_text(question, 0), answer_text(answer))
    ]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    special = [AddedToken(name, special=True, normalized=False) for name in (BEGIN, END, IMAGE, AROUND, GLOBAL)]
    learner.train_from_iterator(
        known,
        trainers.BpeTrainer(
            vocab_size=512, special_tokens=special, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=learner, bos_token=BEGIN, eos_token=END, pad_token=END, model_max_length=512,
        chat_template=CHAT_TEMPLATE, padding_side="right", clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _all_exchanges() -> list[tuple[str, str]]:
    chance = random.Random(0)
    return [
        exchange([chance.randrange(10) for _ in range(number)], chance) for number in (0, 1, 2) for _ in range(2000)
    ]
