"""P5: image generation over HTTP with an event per step, against the bare diffusion pipeline.

The digits painter of `demo_models` by default; any pipeline folder with `--model`. The bare library is
`DiffusionPipeline.__call__` with the same prompt, steps, guidance and seed, in a process of its own; the pixels are
compared first. It is also measured beside an idle server, whose processes never sleep for long. A reading is steps per
second over consecutive images, from the request to the last byte, after one warm-up image. `--side` makes steps as long
as those of larger models.

    python -m benchmarks.images --save benchmarks/raw/images.csv
    python -m benchmarks.images --side 96 --steps 20 --save benchmarks/raw/images-96.csv
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.load import LoadError
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
from benchmarks.servers import ROOT, Server, ours

OURS, PREVIEWS, LIBRARY = "rbee-serve", "rbee-serve, previews", "diffusers"
BESIDE = "diffusers beside an idle rbee-serve"
PROMPT = "a handwritten seven"
GUIDANCE = 3.0


def main() -> None:
    """Measure and print."""
    options = add_options(block_options(__doc__)).parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        library = stack.enter_context(one_process())
        bare = library.submit(draw, options, 0).result()[2]
        server = ours(stack, folder, worker(options), {"prompt": PROMPT, "steps": 2, "stream": False})
        with server.awake():
            if _pixels(generate(server, options, 0, 0)) != bare:
                raise LoadError("the server and the bare library generate different images from one seed")
        bare_turn: Turn = partial(_library_turn, library, options)
        turns: dict[str, Turn] = {
            LIBRARY: bare_turn,
            BESIDE: server.beside(bare_turn),
            OURS: partial(_turn, server, options, 0),
            PREVIEWS: partial(_turn, server, options, options.preview_every),
            f"{OURS} again": partial(_turn, server, options, 0),
        }
        rows = run_blocks(turns, options.blocks)
    print(f"\n{variant_table(rows)}\n\n{comparison_table(rows, comparisons(rows))}")
    if options.save:
        save(rows, options.save)


def worker(options: argparse.Namespace) -> dict[str, Any]:
    """The worker that is measured."""
    engine = {"dtype": "float32", **({"max_side": options.side} if options.side else {})}
    return {
        "id": "vision-0", "type": "vision", "task": "generate", "model_ref": f"file:{options.model}", "cpus": 1,
        "threads": options.threads, "engine": engine,
    }  # fmt: skip


def comparisons(rows: Sequence[Row]) -> Iterator[Comparison]:
    """The comparisons that `rows` allow."""
    measure = rows[0].measure
    yield Comparison(measure, f"{OURS} again", OURS)
    yield Comparison(measure, OURS, LIBRARY, 0.97, 0.99)
    yield Comparison(measure, PREVIEWS, LIBRARY, 0.95, 0.98)
    yield Comparison(measure, BESIDE, LIBRARY)
    yield Comparison(measure, OURS, BESIDE)


def _turn(server: Server, options: argparse.Namespace, preview_every: int) -> dict[str, Reading]:
    with server.awake():
        generate(server, options, 0, preview_every)
        watch = Stopwatch(server.tree)
        for seed in range(options.times):
            generate(server, options, seed, preview_every)
        steps = options.times * options.steps
        return {_measure(options): Reading(steps / watch.wall_s(), 1e6 * watch.cpu_s() / steps)}


def generate(server: Server, options: argparse.Namespace, seed: int, preview_every: int) -> bytes:
    """The image as a PNG, from a stream with an event per step."""
    target = server.target
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=600)
    how = {"prompt": PROMPT, "steps": options.steps, "guidance_scale": GUIDANCE, "seed": seed, **_size(options)}
    body = json.dumps({**how, "preview_every": preview_every})
    connection.request("POST", target.path, body, {**target.headers, "Content-Type": "application/json"})
    answer = connection.getresponse()
    frames = answer.read().split(b"\n\n")
    events = [json.loads(frame[len(b"data: ") :]) for frame in frames if frame.startswith(b"data: {")]
    images = [event for event in events if event["type"] == "image"]
    wanted = options.steps // preview_every if preview_every else 0
    if not images or not wanted - 1 <= len(images) - 1 <= wanted or events[-1]["type"] != "end":
        raise LoadError(f"{answer.status}: {events[-1:]}")
    return base64.b64decode(images[-1]["patch"])


def _library_turn(library: ProcessPoolExecutor, options: argparse.Namespace) -> dict[str, Reading]:
    library.submit(draw, options, 0).result()
    found = [library.submit(draw, options, seed).result()[:2] for seed in range(options.times)]
    steps = options.times * options.steps
    wall_s, cpu_s = (sum(column) for column in zip(*found, strict=True))
    return {_measure(options): Reading(steps / wall_s, 1e6 * cpu_s / steps)}


def _measure(options: argparse.Namespace) -> str:
    return f"steps/s, {options.side} x {options.side} pixels" if options.side else "steps/s"


_pipelines: list[Any] = []


def draw(options: argparse.Namespace, seed: int) -> tuple[float, float, bytes]:
    """Wall and CPU seconds of one call of the bare pipeline, and its pixels. Runs in a process that keeps it."""
    import torch

    if not _pipelines:
        import diffusers

        torch.set_num_threads(options.threads)
        _pipelines.append(diffusers.DiffusionPipeline.from_pretrained(options.model, torch_dtype=torch.float32))
        _pipelines[0].set_progress_bar_config(disable=True)
        draw(options, seed)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    generator = torch.Generator("cpu").manual_seed(seed)
    how = {"num_inference_steps": options.steps, "guidance_scale": GUIDANCE, "generator": generator, **_size(options)}
    image = _pipelines[0](PROMPT, **how).images[0]
    return time.perf_counter() - wall_s, time.process_time() - cpu_s, image.tobytes()


def _size(options: argparse.Namespace) -> dict[str, int]:
    return {"width": options.side, "height": options.side} if options.side else {}


def _pixels(file: bytes) -> bytes:
    from PIL import Image

    return Image.open(io.BytesIO(file)).tobytes()


def add_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Options for the images and the model."""
    parser.add_argument("--model", type=Path, default=ROOT / "demo_models" / "digits_painter")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--side", type=int, default=0, help="pixels of a side; 0 for the model's own size")
    parser.add_argument("--times", type=int, default=5, help="images in one turn")
    parser.add_argument("--preview-every", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    main()
