"""The engine `transformers` on tiny models with random weights: sounds like noise, by the code path of real ones."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from deployments.audio import generate as audio_generate
from deployments.audio import transformers_speech_engine as transformers_speech
from deployments.audio.generate import SpeechBackend, SpeechRequest
from deployments.audio.speech_engine import AudioPiece, SynthesisParams
from deployments.audio.transformers_speech_engine import MAX_CHARACTERS, sentences
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError, InvalidRequest
from rbee_serve.events import End, Output, Progress
from rbee_serve.worker.spec import LoadContext
from rbee_serve.worker.watchdog import Watchdog
from tests import devices
from tests.audio.tiny_sounds import save_tiny_bark, save_tiny_musicgen, save_tiny_speecht5, save_tiny_vits

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread_and_no_hub")
RATE = 16000


@pytest.fixture(scope="module")
def vits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vits")
    save_tiny_vits(folder)
    return folder


def context(folder: Path, steps: Watchdog | None = None, **engine: Any) -> LoadContext:
    worker = WorkerConfig(
        id="speech-0", type="audio", task="generate", model_ref=f"file:{folder}",
        engine={"name": "transformers", **engine},
    )  # fmt: skip
    audio_generate.check(worker)
    return LoadContext(worker, devices.DEVICE, lambda progress: None, steps or Watchdog(20))


@pytest.fixture(scope="module")
def backend(vits: Path) -> Iterator[SpeechBackend]:
    made = audio_generate.load(context(vits))
    yield made
    made.close()


async def sound(backend: SpeechBackend, **fields: Any) -> tuple[Any, list[Any]]:
    request = SpeechRequest(**{"prompt": "hello there. and again!", "format": "f32le", "seed": 5, **fields})
    events = [event async for event in backend.execute(request)]
    parts: list[Any] = [event.value.samples for event in events if isinstance(event, Output)]
    return np.frombuffer(b"".join(parts), "<f4"), events


async def test_it_speaks_sentence_by_sentence_without_a_click_between(backend: SpeechBackend) -> None:
    samples, events = await sound(backend)
    first = next(event for event in events if isinstance(event, Output)).value
    seam = len(first.samples) // 4
    assert first.sample_rate == RATE
    assert samples[0] == samples[seam - 1] == samples[seam] == samples[-1] == 0
    assert [event for event in events if isinstance(event, Progress)] == [Progress(step=n, total=2) for n in (1, 2)]
    assert isinstance(events[-1], End)


async def test_seed_speed_and_voice_count(backend: SpeechBackend) -> None:
    same, _ = await sound(backend)
    again, _ = await sound(backend)
    assert np.array_equal(same, again)
    for change in ({"seed": 6}, {"voice": "2"}, {"speed": 2.0}):
        other, _ = await sound(backend, **change)
        assert not np.array_equal(same, other)
    assert len((await sound(backend, speed=4.0))[0]) < 0.7 * len(same)


async def test_every_speaker_is_a_voice_and_others_are_refused(backend: SpeechBackend) -> None:
    with pytest.raises(InvalidRequest, match="known are 0, 1, 2"):
        await sound(backend, voice="3")


async def test_a_text_in_letters_that_the_model_does_not_know_is_refused(backend: SpeechBackend) -> None:
    with pytest.raises(InvalidRequest, match="nothing that this voice can say"):
        await sound(backend, prompt="你好。")
    assert len((await sound(backend, prompt="你好。hello."))[0])


def test_voices_can_be_named_in_the_configuration(vits: Path, tmp_path: Path) -> None:
    array = tmp_path / "cy.npy"
    np.save(array, np.zeros(8, np.float32))  # as they are often kept: one voice, no rows
    engine = transformers_speech.load(context(vits, voices={"anna": {"speaker_id": 1}, "bo": {"speaker_id": 2}}))
    assert engine.voices == ("anna", "bo")
    assert engine._voices["anna"] == {"speaker_id": 1}
    engine = transformers_speech.load(context(vits, voices={"cy": {"speaker_embeddings": f"file:{array}"}}))
    assert engine._voices["cy"]["speaker_embeddings"].shape == (1, 8)
    array.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ConfigurationError, match=r"engine\.voices: .*cy\.npy is not an array"):
        transformers_speech.load(context(vits, voices={"cy": {"speaker_embeddings": f"file:{array}"}}))


def test_wrong_options_are_told_by_name(vits: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"engine\.dtype: "):
        context(vits, dtype="int3")
    with pytest.raises(ConfigurationError, match=r"engine\.trust_remote_code: unknown key"):
        context(vits, trust_remote_code=True)


def order(prompt: str, seconds: float, cancelled: Any = lambda: False, voice: str | None = None) -> SynthesisParams:
    return SynthesisParams(prompt, voice, 1.0, 5, seconds, True, cancelled)


def joined(pieces: Iterable[AudioPiece]) -> Any:
    return np.concatenate([piece.samples for piece in pieces])


def helpers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "by turns"]


def steps_of(steps: Watchdog) -> float:
    return steps._cells[2]


@pytest.fixture(scope="module")
def musicgen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("musicgen")
    save_tiny_musicgen(folder)
    return folder


def test_music_is_as_long_as_asked_and_stops_between_tokens(musicgen: Path) -> None:
    engine = transformers_speech.load(context(musicgen))
    assert (engine.sample_rate, engine.voices, engine.has_speed) == (RATE, (), False)
    pieces = list(engine.speak(order("a slow song. a slow song", 0.2)))
    assert [(piece.done, piece.total) for piece in pieces] == [(1, 1)]
    assert 0.2 * RATE <= len(pieces[0].samples) <= 0.25 * RATE
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    with pytest.raises(InterruptedError):
        list(engine.speak(order("a slow song", 1.0, cancelled)))
    assert asked == 6
    assert not helpers()


def test_the_first_of_the_music_comes_while_the_rest_is_not_made_yet(musicgen: Path) -> None:
    steps = Watchdog(20)
    engine = transformers_speech.load(context(musicgen, steps))
    made = [(piece, steps_of(steps)) for piece in engine.speak(order("a slow song", 4.0))]
    assert [(piece.done, piece.total) for piece, _ in made] == [(1, 3), (2, 3), (3, 3)]
    assert 4.0 * RATE <= len(joined(piece for piece, _ in made)) <= 4.05 * RATE
    assert made[0][1] < 0.35 * made[-1][1]
    assert not helpers()


@pytest.mark.parametrize("channels", [1, 2])
def test_the_pieces_are_the_sound_that_is_decoded_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    save_tiny_musicgen(tmp_path, channels)
    engine = transformers_speech.load(context(tmp_path))
    turn = engine._turn  # from the second piece on it seeds anew, which no whole sound does
    monkeypatch.setattr(engine, "_turn", lambda order, part: turn(order, part) if part == 1 else None)
    pieces = list(engine.speak(order("a slow song", 4.0)))
    monkeypatch.setattr(transformers_speech, "can_stream", lambda model: False)
    (whole,) = engine.speak(order("a slow song", 4.0))
    assert (whole.done, whole.total) == (1, 1)
    assert np.abs(whole.samples).max() > 0.05
    assert len(pieces) == 3
    np.testing.assert_allclose(joined(pieces), whole.samples, atol=2e-4 if devices.ON_GPU else 1e-5)


def test_two_songs_that_take_turns_are_what_each_is_alone(musicgen: Path) -> None:
    engine = transformers_speech.load(context(musicgen))
    first, second = order("a slow song", 2.0), order("a song", 2.0)
    turns = list(zip(engine.speak(first), engine.speak(second), strict=True))
    assert np.array_equal(joined(piece for piece, _ in turns), joined(engine.speak(first)))
    assert np.array_equal(joined(piece for _, piece in turns), joined(engine.speak(second)))


def test_whoever_leaves_after_a_piece_ends_the_music(musicgen: Path) -> None:
    steps = Watchdog(20)
    engine = transformers_speech.load(context(musicgen, steps))
    pieces = engine.speak(order("a slow song", 4.0))
    with closing(cast("Generator[AudioPiece, None, None]", pieces)):
        next(pieces)
        assert helpers()
        made = steps_of(steps)
    assert not helpers()
    assert steps_of(steps) == made


async def test_music_is_one_signal_whose_progress_counts_pieces(musicgen: Path) -> None:
    backend = audio_generate.load(context(musicgen))
    samples, events = await sound(backend, prompt="a slow song", duration=3.5)
    backend.close()
    assert len(samples) == 3.5 * RATE
    assert samples[0] == samples[-1] == 0
    assert [event for event in events if isinstance(event, Progress)] == [Progress(step=n, total=3) for n in (1, 2, 3)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_speecht5_speaks_by_its_vocoder_in_the_voice_of_an_array(tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("sentencepiece")
    folder, vocoder = tmp_path / "speecht5", tmp_path / "vocoder"
    folder.mkdir()
    save_tiny_speecht5(folder, vocoder)
    voices = {}
    for name, numbers in {"anna": np.eye(8)[:1], "bo": np.ones(8)}.items():
        np.save(tmp_path / f"{name}.npy", numbers)
        voices[name] = {"speaker_embeddings": f"file:{tmp_path / name}.npy"}
    with pytest.raises(ConfigurationError, match=r"^engine\.vocoder: speecht5 needs one, such as hf:"):
        transformers_speech.load(context(folder, voices=voices))
    with pytest.raises(ConfigurationError, match=r"^engine\.voices: speecht5 needs \{NAME: "):
        transformers_speech.load(context(folder, vocoder=f"file:{vocoder}"))
    engine = transformers_speech.load(context(folder, vocoder=f"file:{vocoder}", voices=voices, dtype=dtype))
    assert (engine.sample_rate, engine.voices, engine.has_speed) == (RATE, ("anna", "bo"), False)
    pieces = list(engine.speak(order("hello there. and again!", 9.0)))
    assert [(piece.done, piece.total) for piece in pieces] == [(1, 2), (2, 2)]
    assert all(piece.samples.dtype == np.float32 and np.abs(piece.samples).max() > 0.01 for piece in pieces)
    assert np.array_equal(joined(engine.speak(order("hello there. and again!", 9.0))), joined(pieces))
    other = joined(engine.speak(order("hello there. and again!", 9.0, voice="bo")))
    assert not np.array_equal(other, joined(pieces))


def test_bark_speaks_sentence_by_sentence_in_the_voice_of_a_preset(tmp_path: Path) -> None:
    save_tiny_bark(tmp_path)
    engine = transformers_speech.load(context(tmp_path))
    assert (engine.sample_rate, engine.voices, engine.has_speed) == (24000, (), False)
    pieces = list(engine.speak(order("hello there. and again!", 9.0)))
    assert [(piece.done, piece.total) for piece in pieces] == [(1, 2), (2, 2)]
    assert all(np.abs(piece.samples).max() > 0.01 for piece in pieces)
    assert np.array_equal(joined(engine.speak(order("hello there. and again!", 9.0))), joined(pieces))
    engine = transformers_speech.load(context(tmp_path, voices={"anna": {"voice_preset": "anna"}}))
    assert engine.voices == ("anna",)
    other = joined(engine.speak(order("hello there. and again!", 9.0, voice="anna")))
    assert not np.array_equal(other, joined(pieces))
    asked = iter([False] * 5)
    with pytest.raises(InterruptedError):
        list(engine.speak(order("hello there", 9.0, lambda: next(asked, True))))


def test_sentences_are_found_in_any_language_and_none_is_long() -> None:
    assert sentences("One. Two!  Three?\nFour… 五。六。") == ["One.", "Two!", "Three?", "Four…", "五。", "六。"]
    assert sentences("... !!! \n\n —") == []
    assert all(len(sentence) <= MAX_CHARACTERS for sentence in sentences("word " * 1000 + "x" * 1000))
