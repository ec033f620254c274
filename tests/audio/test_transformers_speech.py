"""The engine `transformers` on tiny models with random weights: noise, by the code path of real models."""

from __future__ import annotations

import shutil
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
from deployments.engine_choice import choose_engine
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError, InvalidRequest
from rbee_serve.events import End, Narration, Output, Progress
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
    backend = audio_generate.load(context(vits))
    yield backend
    backend.close()


def load(context: LoadContext) -> transformers_speech.TransformersSpeechEngine:
    _, options = choose_engine(audio_generate.ENGINES, context.worker)
    return transformers_speech.load(context, options)


def test_weights_in_half_precision_only_are_found(vits: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(vits, tmp_path / "half"))
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    load(context(folder))


def notes(events: list[Any]) -> list[str]:
    return [event.human for event in events if isinstance(event, Narration) and event.action == "note"]


async def generated(backend: SpeechBackend, **fields: Any) -> tuple[Any, list[Any]]:
    request = SpeechRequest(**{"prompt": "hello there. and again!", "format": "f32le", "seed": 5, **fields})
    events = [event async for event in backend.execute(request)]
    parts: list[Any] = [event.value.samples for event in events if isinstance(event, Output)]
    return np.frombuffer(b"".join(parts), "<f4"), events


async def test_sentences_are_generated_one_by_one_without_a_click_between(backend: SpeechBackend) -> None:
    samples, events = await generated(backend)
    first = next(event for event in events if isinstance(event, Output)).value
    seam = len(first.samples) // 4
    assert first.sample_rate == RATE
    assert samples[0] == samples[seam - 1] == samples[seam] == samples[-1] == 0
    assert [event for event in events if isinstance(event, Progress)] == [Progress(step=n, total=2) for n in (1, 2)]
    assert isinstance(events[-1], End)


async def test_seed_speed_and_voice_change_the_audio(backend: SpeechBackend) -> None:
    same, _ = await generated(backend)
    again, _ = await generated(backend)
    assert np.array_equal(same, again)
    for change in ({"seed": 6}, {"voice": "2"}, {"speed": 2.0}):
        other, _ = await generated(backend, **change)
        assert not np.array_equal(same, other)
    assert len((await generated(backend, speed=4.0))[0]) < 0.7 * len(same)


async def test_every_speaker_is_a_voice_and_an_unknown_one_is_refused(backend: SpeechBackend) -> None:
    with pytest.raises(InvalidRequest, match="known are 0, 1, 2"):
        await generated(backend, voice="3")


async def test_a_text_of_unknown_characters_is_refused(backend: SpeechBackend) -> None:
    with pytest.raises(InvalidRequest, match="nothing that this voice can speak"):
        await generated(backend, prompt="你好。")
    samples, events = await generated(backend, prompt="你好。hello.")
    assert len(samples)
    assert notes(events) == ["1 of 2 sentences hold nothing that this voice can speak"]


def test_voices_can_be_named_in_the_configuration(vits: Path, tmp_path: Path) -> None:
    array = tmp_path / "cy.npy"
    np.save(array, np.zeros(8, np.float32))  # often stored so: one voice, without rows
    engine = load(context(vits, voices={"anna": {"speaker_id": 1}, "bo": {"speaker_id": 2}}))
    assert engine.voices == ("anna", "bo")
    assert engine._voices["anna"] == {"speaker_id": 1}
    engine = load(context(vits, voices={"cy": {"speaker_embeddings": f"file:{array}"}}))
    assert engine._voices["cy"]["speaker_embeddings"].shape == (1, 8)
    array.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ConfigurationError, match=r"engine\.voices: .*cy\.npy is not an array"):
        load(context(vits, voices={"cy": {"speaker_embeddings": f"file:{array}"}}))


def test_an_invalid_option_is_named(vits: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"engine\.dtype: "):
        context(vits, dtype="int3")
    with pytest.raises(ConfigurationError, match=r"engine\.trust_remote_code: unknown key"):
        context(vits, trust_remote_code=True)


def params(prompt: str, seconds: float, cancelled: Any = lambda: False, voice: str | None = None) -> SynthesisParams:
    return SynthesisParams(prompt, voice, 1.0, 5, seconds, True, cancelled)


def joined(pieces: Iterable[AudioPiece]) -> Any:
    return np.concatenate([piece.samples for piece in pieces])


def generate_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "musicgen"]


def steps_of(steps: Watchdog) -> float:
    return steps._cells[2]


@pytest.fixture(scope="module")
def musicgen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("musicgen")
    save_tiny_musicgen(folder)
    return folder


def test_music_has_the_requested_length_and_stops_between_tokens(musicgen: Path) -> None:
    engine = load(context(musicgen))
    assert (engine.sample_rate, engine.voices, engine.has_speed) == (RATE, (), False)
    pieces = list(engine.synthesize(params("a slow song. a slow song", 0.2)))
    assert [(piece.done, piece.total) for piece in pieces] == [(1, 1)]
    assert 0.2 * RATE <= len(pieces[0].samples) <= 0.25 * RATE
    polls = 0

    def cancelled() -> bool:
        nonlocal polls
        polls += 1
        return polls > 5

    with pytest.raises(InterruptedError):
        list(engine.synthesize(params("a slow song", 1.0, cancelled)))
    assert polls == 6
    assert not generate_threads()


def test_the_first_piece_of_music_is_returned_before_the_rest_is_generated(musicgen: Path) -> None:
    steps = Watchdog(20)
    engine = load(context(musicgen, steps))
    pieces = [(piece, steps_of(steps)) for piece in engine.synthesize(params("a slow song", 4.0))]
    assert [(piece.done, piece.total) for piece, _ in pieces] == [(1, 3), (2, 3), (3, 3)]
    assert 4.0 * RATE <= len(joined(piece for piece, _ in pieces)) <= 4.05 * RATE
    assert pieces[0][1] < 0.35 * pieces[-1][1]
    assert not generate_threads()


@pytest.mark.parametrize("channels", [1, 2])
def test_the_pieces_equal_the_audio_decoded_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    save_tiny_musicgen(tmp_path, channels)
    engine = load(context(tmp_path))
    prepare = engine._prepare  # it sets the seed before each piece, which happens once for a whole
    monkeypatch.setattr(engine, "_prepare", lambda params, part: prepare(params, part) if part == 1 else None)
    pieces = list(engine.synthesize(params("a slow song", 4.0)))
    monkeypatch.setattr(transformers_speech, "can_stream", lambda model: False)
    (whole,) = engine.synthesize(params("a slow song", 4.0))
    assert (whole.done, whole.total) == (1, 1)
    assert np.abs(whole.samples).max() > 0.05
    assert len(pieces) == 3
    np.testing.assert_allclose(joined(pieces), whole.samples, atol=2e-4 if devices.ON_GPU else 1e-5)


def test_two_alternating_requests_give_the_same_audio_as_each_alone(musicgen: Path) -> None:
    engine = load(context(musicgen))
    first, second = params("a slow song", 2.0), params("a song", 2.0)
    pairs = list(zip(engine.synthesize(first), engine.synthesize(second), strict=True))
    assert np.array_equal(joined(piece for piece, _ in pairs), joined(engine.synthesize(first)))
    assert np.array_equal(joined(piece for _, piece in pairs), joined(engine.synthesize(second)))


def test_closing_the_generator_after_a_piece_stops_generate(musicgen: Path) -> None:
    steps = Watchdog(20)
    engine = load(context(musicgen, steps))
    pieces = engine.synthesize(params("a slow song", 4.0))
    with closing(cast("Generator[AudioPiece, None, None]", pieces)):
        next(pieces)
        assert generate_threads()
        count = steps_of(steps)
    assert not generate_threads()
    assert steps_of(steps) == count


async def test_music_is_one_signal_with_progress_by_pieces(musicgen: Path) -> None:
    backend = audio_generate.load(context(musicgen))
    samples, events = await generated(backend, prompt="a slow song", duration=3.5)
    assert notes(events) == []
    max_s = backend._engine.max_s
    assert max_s is not None
    longer, told = await generated(backend, prompt="a slow song", duration=max_s + 9)
    assert len(longer) / RATE == pytest.approx(max_s, abs=0.1)
    assert notes(told) == [f"This model generates at most {max_s:g} seconds"]
    backend.close()
    assert len(samples) == 3.5 * RATE
    assert samples[0] == samples[-1] == 0
    assert [event for event in events if isinstance(event, Progress)] == [Progress(step=n, total=3) for n in (1, 2, 3)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_speecht5_uses_its_vocoder_and_the_voice_of_an_array(tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("sentencepiece")
    folder, vocoder = tmp_path / "speecht5", tmp_path / "vocoder"
    folder.mkdir()
    save_tiny_speecht5(folder, vocoder)
    voices = {}
    for name, numbers in {"anna": np.eye(8)[:1], "bo": np.ones(8)}.items():
        np.save(tmp_path / f"{name}.npy", numbers)
        voices[name] = {"speaker_embeddings": f"file:{tmp_path / name}.npy"}
    with pytest.raises(ConfigurationError, match=r"^engine\.vocoder: speecht5 needs one, such as hf:"):
        load(context(folder, voices=voices))
    with pytest.raises(ConfigurationError, match=r"^engine\.voices: speecht5 needs \{NAME: "):
        load(context(folder, vocoder=f"file:{vocoder}"))
    engine = load(context(folder, vocoder=f"file:{vocoder}", voices=voices, dtype=dtype))
    assert (engine.sample_rate, engine.voices, engine.has_speed) == (RATE, ("anna", "bo"), False)
    pieces = list(engine.synthesize(params("hello there. and again!", 9.0)))
    assert [(piece.done, piece.total) for piece in pieces] == [(1, 2), (2, 2)]
    assert all(piece.samples.dtype == np.float32 and np.abs(piece.samples).max() > 0.01 for piece in pieces)
    assert np.array_equal(joined(engine.synthesize(params("hello there. and again!", 9.0))), joined(pieces))
    other = joined(engine.synthesize(params("hello there. and again!", 9.0, voice="bo")))
    assert not np.array_equal(other, joined(pieces))


def test_bark_generates_sentence_by_sentence_with_a_voice_preset(tmp_path: Path) -> None:
    save_tiny_bark(tmp_path)
    engine = load(context(tmp_path))
    assert (engine.sample_rate, engine.voices, engine.has_speed) == (24000, (), False)
    pieces = list(engine.synthesize(params("hello there. and again!", 9.0)))
    assert [(piece.done, piece.total) for piece in pieces] == [(1, 2), (2, 2)]
    assert all(np.abs(piece.samples).max() > 0.01 for piece in pieces)
    assert np.array_equal(joined(engine.synthesize(params("hello there. and again!", 9.0))), joined(pieces))
    engine = load(context(tmp_path, voices={"anna": {"voice_preset": "anna"}}))
    assert engine.voices == ("anna",)
    other = joined(engine.synthesize(params("hello there. and again!", 9.0, voice="anna")))
    assert not np.array_equal(other, joined(pieces))
    polls = iter([False] * 5)
    with pytest.raises(InterruptedError):
        list(engine.synthesize(params("hello there", 9.0, lambda: next(polls, True))))


def test_a_text_is_split_into_short_sentences_in_any_language() -> None:
    assert sentences("One. Two!  Three?\nFour… 五。六。") == ["One.", "Two!", "Three?", "Four…", "五。", "六。"]
    assert sentences("... !!! \n\n —") == []
    assert all(len(sentence) <= MAX_CHARACTERS for sentence in sentences("word " * 1000 + "x" * 1000))
