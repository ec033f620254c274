"""P7: overhead of the serving layer for speech.

hibari behind `rbee-serve serve`, and hibari's own stream in a process of its own, synthesize the same texts with the
same seed, so the audio is the same; the library alone, and beside the idle server. The first text of a turn is
synthesized once more as a warm-up. Measured are the time to the first audio and seconds of audio per second, for
streams of PCM and of numbers.

    python -m benchmarks.speech --save benchmarks/raw/speech.csv
"""

from __future__ import annotations

import argparse
import base64
import http.client
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.load import LoadError, Target
from benchmarks.method import (
    Comparison,
    Reading,
    Row,
    Turn,
    block_options,
    comparison_table,
    run_blocks,
    save,
    variant_table,
)
from benchmarks.processes import Stopwatch, one_process
from benchmarks.servers import Server, ours
from benchmarks.texts import sentences

OURS, LIBRARY = "rbee-serve", "hibari"
FORMATS = {"pcm": "pcm_s16le", "numbers": "f32"}
BESIDE = "hibari beside an idle rbee-serve"
RATE = 24_000


def main() -> None:
    """Measure and print."""
    options = _options()
    worker = {"id": "speech-0", "type": "audio", "task": "generate", "cpus": 1, "threads": 1}
    texts = _texts(options.requests, options.sentences)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        client = stack.enter_context(one_process())
        library = stack.enter_context(one_process())
        library.submit(speak, "Hello.").result()
        server = ours(stack, folder, worker, {"prompt": "Hello.", "stream": False})
        bare_turn: Turn = partial(_library_turn, library, texts)
        turns: dict[str, Turn] = {
            LIBRARY: bare_turn,
            BESIDE: server.beside(bare_turn),
            OURS: partial(_turn, server, client, texts),
        }
        rows = run_blocks(turns | {f"{OURS} again": turns[OURS]}, options.blocks)
    print(f"\n{variant_table(rows)}\n\n{comparison_table(rows, comparisons(rows))}")
    if options.save:
        save(rows, options.save)


def comparisons(rows: Sequence[Row]) -> Iterator[Comparison]:
    """The comparisons that `rows` allow."""
    for name in FORMATS:
        first, speed = f"first audio, ms, {name}", f"audio s/s, {name}"
        yield Comparison(first, f"{OURS} again", OURS, kind="difference")
        yield Comparison(first, OURS, LIBRARY, 15.0, 8.0, "difference")
        yield Comparison(speed, f"{OURS} again", OURS)
        yield Comparison(speed, OURS, LIBRARY, 0.95, 0.98)
        yield Comparison(speed, BESIDE, LIBRARY)
        yield Comparison(speed, OURS, BESIDE)


def _turn(server: Server, client: ProcessPoolExecutor, texts: list[str]) -> dict[str, Reading]:
    readings: dict[str, Reading] = {}
    with server.awake():
        for name, form in FORMATS.items():
            client.submit(listen, server.target, texts[0], form).result()
            watch = Stopwatch(server.tree)
            seen = [client.submit(listen, server.target, text, form).result() for text in texts]
            readings |= _readings(name, seen, watch.cpu_s())
    return readings


def _library_turn(library: ProcessPoolExecutor, texts: list[str]) -> dict[str, Reading]:
    """The same readings for both forms: the library has one."""
    library.submit(speak, texts[0]).result()
    answers = [library.submit(speak, text).result() for text in texts]
    readings: dict[str, Reading] = {}
    for name in FORMATS:
        readings |= _readings(name, [answer[:3] for answer in answers], sum(answer[3] for answer in answers))
    return readings


def _readings(name: str, seen: list[tuple[float, float, float]], cpu_s: float) -> dict[str, Reading]:
    """From each request's seconds to the first audio, total seconds, and seconds of audio."""
    firsts, walls, sounds = zip(*seen, strict=True)
    return {
        f"first audio, ms, {name}": Reading(1e3 * statistics.median(firsts)),
        f"audio s/s, {name}": Reading(sum(sounds) / sum(walls), 1e6 * cpu_s / sum(sounds)),
    }


def listen(target: Target, text: str, form: str) -> tuple[float, float, float]:
    """Read one stream. Frames are parsed after the last one."""
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=120)
    body = json.dumps({"prompt": text, "format": form, "seed": 1})
    headers = {"Content-Type": "application/json", **target.headers}
    began = time.perf_counter()
    connection.request("POST", target.path, body, headers)
    answer = connection.getresponse()
    data = bytearray()
    first_s = 0.0
    while part := answer.read1(1 << 20):
        data += part
        if not first_s and (begin := data.find(b'data: {"type":"audio"')) >= 0 and data.find(b"\n\n", begin) > 0:
            first_s = time.perf_counter() - began
    wall_s = time.perf_counter() - began
    connection.close()
    if answer.status != 200 or not data.endswith(b"data: [DONE]\n\n"):
        raise LoadError(f"{answer.status}: {bytes(data[-300:])!r}")
    frames = [frame for frame in bytes(data).split(b"\n\n") if frame.startswith(b'data: {"type":"audio"')]
    return first_s, wall_s, sum(map(_seconds, frames))


def _seconds(frame: bytes) -> float:
    samples: str | list[float] = json.loads(frame.removeprefix(b"data: "))["samples"]
    return (len(base64.b64decode(samples)) // 2 if isinstance(samples, str) else len(samples)) / RATE


_voices: list[Any] = []


def speak(text: str) -> tuple[float, float, float, float]:
    """The bare library's stream and its CPU seconds. Runs in a process that keeps the model."""
    if not _voices:
        from hibari import Hibari

        _voices.append(Hibari(threads=1))
    cpu, began = time.process_time(), time.perf_counter()
    first_s, samples = 0.0, 0
    for part in _voices[0].stream(text, seed=1):
        first_s = first_s or time.perf_counter() - began
        samples += len(part)
    return first_s, time.perf_counter() - began, samples / RATE, time.process_time() - cpu


def _texts(count: int, length: int) -> list[str]:
    spoken = sentences(8, 16)
    return [" ".join(itertools.islice(spoken, length)) for _ in range(count)]


def _options() -> argparse.Namespace:
    parser = block_options(__doc__)
    parser.add_argument("--requests", type=int, default=10, help="texts in one turn")
    parser.add_argument("--sentences", type=int, default=15, help="sentences in a text; five give 16 s of audio")
    return parser.parse_args()


if __name__ == "__main__":
    main()
