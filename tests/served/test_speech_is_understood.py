"""Generated speech is transcribed correctly: the two audio workers together, over HTTP."""

from __future__ import annotations

import httpx
import jiwer
import pytest

from tests.audio.speech import words_of
from tests.conftest import Served
from tests.served.models import SPEECH, TRANSCRIBE, serving

pytestmark = [pytest.mark.ray, serving(SPEECH, TRANSCRIBE)]

SENTENCES = """\
The weather is nice today and the sky is blue.
We will walk along the river and eat an apple.
She opened the window because the room was warm.
My brother works in a small shop near the station.
The children are playing with a ball in the garden.
Please close the door when you leave the house.
He read the letter twice before he gave an answer.
The train to the north leaves at seven in the morning.
A good book is the best friend on a rainy day.
They bought bread, milk and cheese at the market.
The old man told us a story about the sea.
I would like to drink a cup of coffee with you.
The teacher asked a question that nobody could answer.
Snow covered the mountains for most of the winter.
Our neighbours have a big dog and two black cats.
The music was so loud that I could not sleep.
You can find the key under the stone by the gate.
The doctor said that I should rest for a week.
It takes an hour to drive from here to the city.
Birds build their nests in the trees in spring.
""".splitlines()


@pytest.fixture(autouse=True)
def ready(served: Served) -> None:
    served.wait_until_ready([SPEECH["id"], TRANSCRIBE["id"]])


def transcribed(served: Served, sentence: str) -> str:
    spoken = httpx.post(
        f"{served.base(SPEECH['id'])}/v1/inference",
        json={"prompt": sentence, "format": "flac", "stream": False, "seed": 1},
        timeout=60,
    )
    assert spoken.status_code == 200, spoken.text
    text = httpx.post(
        f"{served.base(TRANSCRIBE['id'])}/v1/inference?stream=false",
        content=spoken.content,
        headers={"content-type": spoken.headers["content-type"]},
        timeout=60,
    )
    assert text.status_code == 200, text.text
    return str(text.json()["text"])


def test_the_word_error_rate_of_twenty_sentences_is_below_a_tenth(served: Served) -> None:
    expected = [" ".join(words_of(sentence)) for sentence in SENTENCES]
    transcripts = [" ".join(words_of(transcribed(served, sentence))) for sentence in SENTENCES]
    outcome = jiwer.process_words(expected, transcripts)
    print(
        f"word error rate {outcome.wer:.3f}: {outcome.substitutions} wrong, {outcome.deletions} missing, "
        f"{outcome.insertions} too many of {sum(len(sentence.split()) for sentence in expected)}"
    )
    assert len(expected) == 20
    assert outcome.wer < 0.10
