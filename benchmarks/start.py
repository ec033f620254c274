"""P10: seconds from the command until every worker of a configuration is ready.

Compared with the sum of the bare libraries' times for the same models, one after another: each in a process of its own,
from its start, with all imports, to its first result. vLLM reads the language model as the worker converted it, with
the same engine options.

    python -m benchmarks.start --save benchmarks/raw/start.csv
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import httpx
import yaml

from benchmarks.load import LoadError
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
from benchmarks.processes import ProcessTree
from benchmarks.servers import ROOT, free_port
from rbee_serve.config import WorkerConfig, parse_application
from rbee_serve.model_files.resolve import Format, prepare

OURS, LIBRARIES = "rbee-serve", "bare libraries"
MEASURE = "seconds to ready"
LONGEST_S = 600.0


def main() -> None:
    """Measure and print."""
    options = _options()
    document = yaml.safe_load(options.config.read_text())
    workers = parse_application(document["applications"][0]["args"]).workers
    rows = run_blocks(
        {LIBRARIES: lambda: _bare_turn(workers), OURS: lambda: _turn(document)},
        options.blocks,
    )
    print(f"\n{variant_table(rows)}\n\n{comparison_table(rows, comparisons(rows))}")
    if options.save:
        save(rows, options.save)


def comparisons(rows: Sequence[Row]) -> Iterator[Comparison]:
    """The comparisons that `rows` allow: at most 20 s more than the libraries, stretch four fifths of their time."""
    yield Comparison(MEASURE, OURS, LIBRARIES, must=20.0, kind="difference")
    yield Comparison(MEASURE, OURS, LIBRARIES, stretch=0.8, kind="ratio at most")


def _turn(document: dict[str, Any]) -> dict[str, Reading]:
    port = free_port()
    document = {**document, "http_options": {"host": "127.0.0.1", "port": port}}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "VLLM_", "OMP_"))}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = folder / "serve_config.yaml"
        config.write_text(yaml.safe_dump(document))
        command = [sys.executable, "-m", "rbee_serve.supervisor", "serve", str(config)]
        began = time.monotonic()
        tree = ProcessTree(command, {**environment, "PYTHONPATH": str(ROOT)}, folder / "log")
        stack.callback(tree.end)
        while not _ready(port):
            if not tree.running or time.monotonic() - began > LONGEST_S:
                raise LoadError(f"the server did not become ready:\n{tree.log.read_text()[-2000:]}")
            time.sleep(0.2)
        return {MEASURE: Reading(time.monotonic() - began, float("nan"))}


def _ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v1/ready").status_code == 200
    except httpx.HTTPError:
        return False


def _bare_turn(workers: list[WorkerConfig]) -> dict[str, Reading]:
    readings = {}
    for worker in workers:
        began = time.monotonic()
        command = [sys.executable, "-m", "benchmarks.start", "--bare", worker.model_dump_json()]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
        readings[f"{MEASURE}, {worker.id}"] = Reading(time.monotonic() - began, float("nan"))
    return {MEASURE: Reading(sum(reading.value for reading in readings.values()), float("nan")), **readings}


def _embedding(worker: WorkerConfig, model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(model), device="cpu").encode("Hello")


def _speech(worker: WorkerConfig, model: Path) -> None:
    from hibari import Hibari

    Hibari()("Hello.")


def _transcribe(worker: WorkerConfig, model: Path) -> None:
    import wave

    from faster_whisper import WhisperModel

    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 16_000, 0, "NONE", ""))
        sound.writeframes(b"\0" * 32_000)
    file.seek(0)
    list(WhisperModel(str(model), device="cpu", compute_type="int8").transcribe(file)[0])


def _classify(worker: WorkerConfig, model: Path) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    processor = AutoImageProcessor.from_pretrained(model)
    AutoModelForImageClassification.from_pretrained(model)(
        **processor(images=Image.new("RGB", (32, 32)), return_tensors="pt")
    )


def _draw(worker: WorkerConfig, model: Path) -> None:
    import diffusers
    import torch

    pipeline = diffusers.DiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
    pipeline("a seven", num_inference_steps=2)


def _vllm(worker: WorkerConfig, model: Path) -> None:
    from vllm import LLM, SamplingParams

    options = {"kv_cache_memory_bytes": 2**30, "enforce_eager": True, **worker.engine}
    LLM(str(model), **options).generate("Hello", SamplingParams(max_tokens=2))


BARE: dict[tuple[str, str | None], Callable[[WorkerConfig, Path], None]] = {
    ("llm", None): _vllm,
    ("multimodal", None): _vllm,
    ("embedding", None): _embedding,
    ("audio", "generate"): _speech,
    ("audio", "transcribe"): _transcribe,
    ("vision", "classify"): _classify,
    ("vision", "generate"): _draw,
}
"""Load the bare library of a worker of that type and task, and compute a first result."""


def _bare(worker: WorkerConfig) -> None:
    ref = worker.model_ref
    model = prepare(ref, lambda progress: None, formats=get_args(Format)) if ref else Path()
    BARE[worker.type, worker.task](worker, model)


def _options() -> argparse.Namespace:
    parser = block_options(__doc__)
    parser.add_argument("--config", type=Path, default=ROOT / "serve_config.yaml")
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        _bare(WorkerConfig.model_validate_json(options.bare))
        sys.exit()
    return options


if __name__ == "__main__":
    main()
