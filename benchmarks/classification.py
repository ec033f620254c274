"""P6: a classifier behind HTTP with 16 clients, against the bare library.

A ViT of the usual size (86 M parameters, 224 x 224 pixels, a thousand labels) with random weights, created for the run.
The bare library decodes the same JPEG files with Pillow, preprocesses them with the model's processor, and runs the
model in batches of the best size on this machine, in a process of its own. A reading is images per second.

    python -m benchmarks.classification --save benchmarks/raw/classification.csv
"""

from __future__ import annotations

import argparse
import http.client
import io
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.load import batched, in_threads
from benchmarks.method import (
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
from benchmarks.random_models import jpeg_files, vit_base
from benchmarks.servers import Server, ours

OURS, LIBRARY = "rbee-serve", "transformers"
BATCHES = (1, 4, 8, 16)
SIZE = (640, 480)


def main() -> None:
    """Measure and print."""
    options = _options()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        library = stack.enter_context(one_process())
        files = library.submit(make, folder / "vit", options.images).result()
        batch = library.submit(best_batch, folder / "vit", options.threads, files).result()
        print(f"the library is fastest with {batch} images in a batch", file=sys.stderr)
        worker = {
            "id": "vision-0", "type": "vision", "task": "classify", "model_ref": f"file:{folder / 'vit'}", "cpus": 1,
            "threads": options.threads,
        }  # fmt: skip
        server = ours(stack, folder, worker, {"image": PIXEL, "stream": False})
        turns = {
            LIBRARY: partial(_library_turn, library, folder / "vit", options.threads, files, batch, options.clients),
            OURS: partial(_turn, server, files, options),
            f"{OURS} again": partial(_turn, server, files, options),
        }
        rows = run_blocks(turns, options.blocks)
    print(f"\n{variant_table(rows)}\n\n{comparison_table(rows, comparisons(rows))}")
    if options.save:
        save(rows, options.save)


def comparisons(rows: Sequence[Row]) -> Iterator[Comparison]:
    """The comparisons that `rows` allow."""
    for measure in measures(rows):
        yield Comparison(measure, f"{OURS} again", OURS)
        yield Comparison(measure, OURS, LIBRARY, 0.85, 0.93)


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mNoaGgAAAMEAYF1LgG8AAAAAElFTkSuQmCC"
"""A grey PNG of 1 x 1 pixel."""


def _measure(clients: int) -> str:
    return f"images/s, {clients} clients"


def _turn(server: Server, files: list[bytes], options: argparse.Namespace) -> dict[str, Reading]:
    with server.awake():
        watch = Stopwatch(server.tree)
        classify_over_http(server, files, options.clients)
        return {_measure(options.clients): Reading(len(files) / watch.wall_s(), 1e6 * watch.cpu_s() / len(files))}


def classify_over_http(server: Server, files: list[bytes], clients: int) -> None:
    """Classify each file once, over `clients` connections that send the next request after each response."""
    waiting, lock = iter(files), threading.Lock()

    def work(client: int) -> str | None:
        connection = http.client.HTTPConnection("127.0.0.1", server.target.port, timeout=120)
        headers = {**server.target.headers, "Content-Type": "image/jpeg"}
        while True:
            with lock:
                file = next(waiting, None)
            if file is None:
                return None
            connection.request("POST", f"{server.target.path}?stream=false", file, headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                return f"{answer.status}: {content[:300]!r}"

    in_threads(work, clients)


def _library_turn(
    library: ProcessPoolExecutor, model: Path, threads: int, files: list[bytes], batch: int, clients: int
) -> dict[str, Reading]:
    wall_s, cpu_s = library.submit(classify, model, threads, files, batch).result()
    return {_measure(clients): Reading(len(files) / wall_s, 1e6 * cpu_s / len(files))}


def make(folder: Path, images: int) -> list[bytes]:
    """The model's folder, and `count` images to classify."""
    vit_base(folder)
    return jpeg_files(images, SIZE)


_loaded: list[Any] = []


def classify(model: Path, threads: int, files: list[bytes], batch: int) -> tuple[float, float]:
    """Wall and CPU seconds of the bare library on all files. Runs in a process that keeps the model."""
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, ViTForImageClassification

    if not _loaded:
        torch.set_num_threads(threads)
        _loaded.extend(
            [ViTForImageClassification.from_pretrained(model).eval(), AutoImageProcessor.from_pretrained(model)]
        )
        classify(model, threads, files[:batch], batch)
    net, processor = _loaded
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        for part in batched(files, batch):
            images = [Image.open(io.BytesIO(file)).convert("RGB") for file in part]
            net(**processor(images=images, return_tensors="pt")).logits.softmax(-1).topk(5)
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def best_batch(model: Path, threads: int, files: list[bytes]) -> int:
    """The batch size with which the bare library is fastest."""
    return min(BATCHES, key=lambda batch: classify(model, threads, files, batch)[0])


def _options() -> argparse.Namespace:
    parser = block_options(__doc__)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--images", type=int, default=32, help="images in one turn")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
