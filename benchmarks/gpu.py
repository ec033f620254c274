"""Our backends against the bare libraries on a GPU, in this process, without Ray and HTTP.

Models of the usual sizes with random weights, in float16. Our reading is the throughput of many concurrent requests;
the bare library gets all of the work at once, in batches. Images are generated one after another.

    python -m benchmarks.gpu --save benchmarks/raw/gpu.csv
    python -m benchmarks.gpu --device cpu --small --blocks 1
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.load import batched
from benchmarks.method import (
    Comparison,
    Reading,
    Row,
    Turn,
    block_options,
    comparison_table,
    measures,
    run_blocks,
    save,
    variant_table,
)
from benchmarks.random_models import bert_base, jpeg_files, stable_diffusion, vit_base
from benchmarks.texts import sentences
from deployments.registry import WORKER_TYPES
from rbee_serve.config import WorkerConfig
from rbee_serve.request import InferenceRequest
from rbee_serve.worker.registry import load_spec
from rbee_serve.worker.spec import Device, LoadContext

OURS, AGAIN, LIBRARY = "rbee-serve", "rbee-serve again", "the library"
PROMPT = "a house by the sea"
TEXTS = ((64, 8), (256, 1))
"""Clients, and texts per request."""
BATCHES = (64, 256)
"""Batch sizes for the library; the better one counts."""

Work = Callable[[], dict[str, Reading]]


def main() -> None:
    """Measure and print."""
    options = _options()
    variants: dict[str, list[Work]] = {OURS: [], LIBRARY: []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runner = stack.enter_context(asyncio.Runner())
        for make in (_texts, _classes, _images):
            ours, library = make(folder / make.__name__, options, stack, runner)
            ours(), library()
            variants[OURS].append(ours)
            variants[LIBRARY].append(library)
        turns: dict[str, Turn] = {variant: _together(works) for variant, works in variants.items()}
        rows = run_blocks({**turns, AGAIN: turns[OURS]}, options.blocks)
    print(f"\n{variant_table(rows)}\n\n{comparison_table(rows, comparisons(rows))}")
    if options.save:
        save(rows, options.save)


def comparisons(rows: Sequence[Row]) -> Iterator[Comparison]:
    """The comparisons that `rows` allow."""
    for measure in measures(rows):
        yield Comparison(measure, AGAIN, OURS)
        yield Comparison(measure, OURS, LIBRARY)


def _together(works: Sequence[Work]) -> Turn:
    return lambda: dict(itertools.chain.from_iterable(work().items() for work in works))


def _loaded(stack: ExitStack, options: argparse.Namespace, folder: Path, kind: str, **more: Any) -> Any:
    """A backend, loaded as a replica loads it."""
    worker = WorkerConfig(id="worker", model_ref=f"file:{folder}", engine={"dtype": options.dtype}, **more)
    backend = load_spec(WORKER_TYPES[kind]).load(LoadContext(worker, Device(options.device), lambda progress: None))
    stack.callback(backend.close)
    return backend


async def _answer(backend: Any, request: InferenceRequest) -> None:
    async for _ in backend.execute(request):
        pass


async def _by_clients(clients: int, work: Iterable[Awaitable[None]]) -> None:
    """Run `work` with that many clients, each taking the next request after a response."""
    waiting = iter(work)

    async def client() -> None:
        for one in waiting:
            await one

    await asyncio.gather(*(client() for _ in range(clients)))


def _timed(count: int, work: Callable[[], object]) -> Reading:
    """The rate for `count` units, and this process's CPU time per unit."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return Reading(count / wall_s, 1e6 * cpu_s / count)


def _texts(folder: Path, options: argparse.Namespace, stack: ExitStack, runner: asyncio.Runner) -> tuple[Work, Work]:
    """Embeddings of texts of 15 to 25 words."""
    from sentence_transformers import SentenceTransformer

    from deployments.embedding.embedding_worker import EmbeddingRequest

    sizes = {"num_hidden_layers": 2, "hidden_size": 384, "intermediate_size": 1536} if options.small else {}
    model = bert_base(folder, **sizes)
    backend = _loaded(stack, options, model, "embedding", type="embedding")
    bare = SentenceTransformer(str(model), device=options.device, model_kwargs={"dtype": options.dtype})
    texts = list(itertools.islice(sentences(15, 25), 512 if options.small else 8192))

    def run(clients: int, many: int) -> None:
        requests = (EmbeddingRequest(input=list(part)) for part in batched(texts, many))
        runner.run(_by_clients(clients, (_answer(backend, request) for request in requests)))

    def ours() -> dict[str, Reading]:
        return {_texts_of(*load): _timed(len(texts), partial(run, *load)) for load in TEXTS}

    def library() -> dict[str, Reading]:
        found = [_timed(len(texts), partial(bare.encode, texts, batch_size=batch)) for batch in BATCHES]
        return dict.fromkeys((_texts_of(*load) for load in TEXTS), max(found, key=lambda reading: reading.value))

    return ours, library


def _texts_of(clients: int, many: int) -> str:
    return f"texts/s, {clients} clients, {many} texts"


def _classes(folder: Path, options: argparse.Namespace, stack: ExitStack, runner: asyncio.Runner) -> tuple[Work, Work]:
    """Classification of JPEG files of 640 x 480 pixels."""
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, ViTForImageClassification

    from deployments.vision.classify import ClassifyRequest

    model = vit_base(folder, **({"num_hidden_layers": 1} if options.small else {}))
    backend = _loaded(stack, options, model, "vision/classify", type="vision", task="classify")
    bare = ViTForImageClassification.from_pretrained(model, dtype=options.dtype).eval().to(options.device)
    processor = AutoImageProcessor.from_pretrained(model)
    files = jpeg_files(32 if options.small else 512, (640, 480))
    measure = "images classified/s, 64 clients"

    def ours() -> dict[str, Reading]:
        work = (_answer(backend, ClassifyRequest(image=file)) for file in files)
        return {measure: _timed(len(files), lambda: runner.run(_by_clients(64, work)))}

    def classify() -> None:
        for part in batched(files, 64):
            images = [Image.open(io.BytesIO(file)).convert("RGB") for file in part]
            inputs = processor(images=images, return_tensors="pt").to(bare.device, bare.dtype)
            with torch.inference_mode():
                bare(**inputs).logits.softmax(-1).topk(5).values.cpu()

    return ours, lambda: {measure: _timed(len(files), classify)}


def _images(folder: Path, options: argparse.Namespace, stack: ExitStack, runner: asyncio.Runner) -> tuple[Work, Work]:
    """Images of 512 x 512 pixels in 20 steps, with an event per step, and with a preview every five steps."""
    import diffusers
    import torch

    from deployments.vision.generate import ImageRequest

    model = stable_diffusion(folder, (32, 64, 64, 64), 32) if options.small else stable_diffusion(folder)
    backend = _loaded(stack, options, model, "vision/generate", type="vision", task="generate")
    bare = diffusers.DiffusionPipeline.from_pretrained(model, torch_dtype=getattr(torch, options.dtype))
    bare.to(options.device).set_progress_bar_config(disable=True)
    steps, side, count = (2, 64, 1) if options.small else (20, 512, 4)
    kinds = {"steps/s of images": 0, "steps/s of images with previews": 5}

    def request(seed: int, preview_every: int) -> ImageRequest:
        return ImageRequest(prompt=PROMPT, width=side, height=side, steps=steps, seed=seed, preview_every=preview_every)

    def draw(preview_every: int) -> None:
        work = (_answer(backend, request(seed, preview_every)) for seed in range(count))
        runner.run(_by_clients(1, work))

    def ours() -> dict[str, Reading]:
        return {kind: _timed(count * steps, partial(draw, every)) for kind, every in kinds.items()}

    def bare_draw() -> None:
        for seed in range(count):
            generator = torch.Generator("cpu").manual_seed(seed)
            image = bare(PROMPT, num_inference_steps=steps, width=side, height=side, generator=generator).images[0]
            image.save(io.BytesIO(), "PNG")

    def library() -> dict[str, Reading]:
        return dict.fromkeys(kinds, _timed(count * steps, bare_draw))

    return ours, library


def _options() -> argparse.Namespace:
    parser = block_options(__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--small", action="store_true", help="small models and little work, to check that it runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
