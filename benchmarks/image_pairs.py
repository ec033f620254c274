"""Overhead of serving per image in milliseconds, for few and for many denoising steps.

One image by `rbee-serve serve` and one of the same seed by the bare pipeline in a process of its own, in turn, so that
both run on the machine in the same state; the server is never stopped. The slope over the steps is the cost of a step,
the rest that of a request.

    python -m benchmarks.image_pairs
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks import images
from benchmarks.processes import one_process
from benchmarks.servers import ours

STEPS = (1, 10, 30, 100)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    images.add_options(parser)
    parser.add_argument("--pairs", type=int, default=12, help="pairs of images for each number of steps")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        library = stack.enter_context(one_process())
        library.submit(images.draw, options, 0).result()
        server = ours(stack, folder, images.worker(options), {"prompt": images.PROMPT, "steps": 2, "stream": False})
        print("| steps | rbee-serve, ms | diffusers, ms | more, ms | more, of diffusers |\n|---|---|---|---|---|")
        with server.awake():
            for steps in STEPS:
                options.steps = steps
                pairs = []
                for seed in range(options.pairs):
                    began = time.perf_counter()
                    images.generate(server, options, seed, 0)
                    pairs.append((time.perf_counter() - began, library.submit(images.draw, options, seed).result()[0]))
                served, bare = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
                more = 1e3 * statistics.median(one - other for one, other in pairs)
                print(f"| {steps} | {served:.1f} | {bare:.1f} | {more:+.1f} | {more / bare:+.1%} |", flush=True)


if __name__ == "__main__":
    main()
