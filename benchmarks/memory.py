"""P11: memory of an open stream, and of everything beside an engine.

Streams of the echo worker that send one word and then only a comment every ten seconds; and all of `rbee-serve serve`
with a language model against vLLM's own server with the same engine arguments. Memory is the proportional set size of
all processes of a variant: shared pages are divided among the processes that map them. No other program may map the
same libraries meanwhile, so each turn starts its server and ends it."""

from __future__ import annotations

import argparse
import json
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import one_layer
from benchmarks.llm import ENGINE, MODEL, NAME, OURS, VLLM, engine_arguments
from benchmarks.load import LoadError, StreamLoad, Target, read_streams
from benchmarks.method import (
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
    table,
    variant_table,
)
from benchmarks.servers import Server, ours, vllm_server
from rbee_serve.model_files.resolve import prepare

WARM_STREAMS = 20
"""Streams that are opened and closed before the measurement, so that lazy imports are done."""
SETTLE_S, QUIET_S = 2.0, 11.0
"""Seconds of idling before a measurement; with open streams long enough for a comment on each."""
CLIENTS, TOKENS = 32, 64
"""Tokens that a language model generates before the measurement."""
STREAM, TREE = "an open stream, KB", "all processes, MB"
STREAM_GOAL_KB: Goal = (100.0, 40.0)
TREE_GOAL_MB: Goal = (1200.0, 800.0)

Weights = dict[str, list[Counter[str]]]
"""Bytes by process: for each variant one reading per turn."""


def main() -> None:
    """Measure and print."""
    options = _options()
    weights: Weights = {}
    rows: list[Row] = []
    if "streams" in options.parts:
        rows += run_blocks({OURS: partial(_streams_turn, options.streams, weights)}, options.blocks)
        print(f"\n{_process_table(weights, 1e3 * options.streams, STREAM)}")
        weights.clear()
    if "engine" in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            rows += run_blocks(_engine_turns(Path(folder), weights, options), options.blocks)
        print(f"\n{_process_table(weights, 1e6, TREE)}")
    print(f"\n{variant_table(rows)}\n\n{comparison_table(rows, comparisons(rows))}")
    if options.save:
        save(rows, options.save)


def comparisons(rows: Sequence[Row]) -> Iterator[Comparison]:
    """The comparisons that `rows` allow."""
    if STREAM in measures(rows):
        yield Comparison(STREAM, OURS, "", *STREAM_GOAL_KB, "value at most")
    if TREE in measures(rows):
        yield Comparison(TREE, OURS, VLLM, *TREE_GOAL_MB, "difference")


def _streams_turn(streams: int, weights: Weights) -> dict[str, Reading]:
    """Open streams on a fresh server, close them, and open them again."""
    worker = {"id": "echo-0", "type": "echo", "cpus": 0, "max_ongoing_requests": streams}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = ours(stack, folder, worker, {"prompt": "hello", "stream": False})
        stack.enter_context(server.awake())
        with _open_streams(server.target, WARM_STREAMS):
            time.sleep(1)
        before = _weigh(server)
        with _open_streams(server.target, streams):
            beside = _weigh(server, QUIET_S)
        closed = _weigh(server)
        with _open_streams(server.target, streams):
            again = _weigh(server, QUIET_S)
    weights.setdefault(OURS, []).append(Counter({name: size - before[name] for name, size in beside.items()}))

    def grown(to: Counter[str]) -> Reading:
        return Reading((to.total() - before.total()) / streams / 1e3)

    return {
        STREAM: grown(beside),
        "a stream that was closed, KB": grown(closed),
        "a stream opened again, KB": grown(again),
        "without a stream, MB": Reading(before.total() / 1e6),
    }


def _weigh(server: Server, after_s: float = SETTLE_S) -> Counter[str]:
    time.sleep(after_s)
    return server.tree.memory_bytes()


@contextmanager
def _open_streams(target: Target, count: int) -> Iterator[None]:
    """While the block runs, `count` streams are open and have sent their first word."""
    body = json.dumps({"prompt": "first second", "tokens_per_sec": 1e-3}).encode()
    with ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", target.port), timeout=10))
            connection.sendall(target.request(body))
            _read_first_word(connection)
        yield


def _read_first_word(connection: socket.socket) -> None:
    answer = b""
    while b'"type":"token"' not in answer:
        data = connection.recv(65536)
        if not data:
            raise LoadError(f"a stream was refused or ended early: {answer!r}")
        answer += data


def _engine_turns(folder: Path, weights: Weights, options: argparse.Namespace) -> dict[str, Turn]:
    model = prepare(MODEL, lambda progress: None)
    reference = MODEL
    if options.one_layer:
        model = one_layer.make(model, folder / "one-layer")
        reference = f"file:{model}"
    engine = ENGINE | {"dtype": "bfloat16"}
    worker = {"id": "llm-0", "type": "llm", "model_ref": reference, "model_name": NAME, "cpus": 1, "engine": engine}
    fields = {"max_tokens": TOKENS, "temperature": 0.0, "ignore_eos": True}

    def our_server(stack: ExitStack) -> Server:
        return ours(stack, folder, worker, {"prompt": "Hello", "stream": False, **fields})

    def bare_server(stack: ExitStack) -> Server:
        return vllm_server(stack, folder, engine_arguments(str(model), engine), {**bare, "prompt": "Hello"})

    bare = {"model": NAME, **fields}
    return {
        VLLM: partial(_engine_turn, VLLM, bare_server, {**bare, "stream": True}, weights),
        OURS: partial(_engine_turn, OURS, our_server, fields, weights),
    }


def _engine_turn(
    variant: str, start: Callable[[ExitStack], Server], fields: dict[str, Any], weights: Weights
) -> dict[str, Reading]:
    """Start the variant's server, send concurrent requests, and measure its memory."""
    bodies = [json.dumps({**fields, "prompt": f"{number} little pigs"}).encode() for number in range(CLIENTS)]
    with ExitStack() as stack:
        server = start(stack)
        with server.awake():
            read_streams(StreamLoad(server.target, bodies, CLIENTS))
            held = _weigh(server)
    weights.setdefault(variant, []).append(held)
    return {TREE: Reading(held.total() / 1e6)}


def _process_table(weights: Weights, unit: float, called: str) -> str:
    """By process, the mean over the turns of each variant."""
    lines = []
    for variant, turns in weights.items():
        total: Counter[str] = Counter()
        for turn in turns:
            total.update(turn)
        lines += [[variant, name, f"{size / unit / len(turns):,.1f}"] for name, size in total.most_common()]
    return table(["variant", "process", called], lines)


def _options() -> argparse.Namespace:
    parser = block_options(__doc__)
    parser.set_defaults(blocks=3)
    parser.add_argument("--parts", nargs="+", choices=["streams", "engine"], default=["streams", "engine"])
    parser.add_argument("--streams", type=int, default=400, help="number of open streams")
    parser.add_argument("--one-layer", action="store_true", help="a model of negligible size")
    return parser.parse_args()


if __name__ == "__main__":
    main()
