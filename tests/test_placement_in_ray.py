"""Ray's own placement of shares of GPUs, beside the rule of `rbee_serve.placement`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from rbee_serve.placement import Node

PROGRAM = """
import json, sys, time
import ray

ray.init(num_cpus=1, num_gpus=2, include_dashboard=False, log_to_driver=False)

@ray.remote(num_cpus=0)
class Replica:
    def gpus(self):
        return ray.get_gpu_ids()

for order in json.loads(sys.argv[1]):
    replicas, placed = [], []
    for number, share in enumerate(order):
        replicas.append(Replica.options(num_gpus=share).remote())
        last = number == len(order) - 1
        ready, _ = ray.wait([call := replicas[-1].gpus.remote()], timeout=8 if last else 120)
        placed.append(ray.get(call) if ready else None)
    print(json.dumps(placed), flush=True)
    for replica in replicas:
        ray.kill(replica)
    while ray.available_resources().get("GPU") != 2:
        time.sleep(0.1)
"""
ORDERS = [[0.4, 0.4, 0.6, 0.6], [0.6, 0.6, 0.4, 0.4], [0.4, 0.6, 0.4, 0.6], [0.5, 1, 0.3, 0.2]]
STRANDS = [True, False, False, False]


@pytest.mark.ray
def test_ray_gives_each_share_the_gpu_that_the_rule_gives_it() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), json.dumps(ORDERS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    placed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert placed == [by_the_rule(order) for order in ORDERS]
    assert [None in gpus for gpus in placed] == STRANDS


def by_the_rule(order: list[float]) -> list[list[int] | None]:
    """The GPUs of each share, in this order of arrival; None where there is none."""
    machine = Node.of({"NodeManagerAddress": "", "Resources": {"CPU": 1, "GPU": 2}})
    found: list[list[int] | None] = []
    for share in order:
        before = list(machine.gpus)
        fits = machine.take(0, share)
        found.append([index for index, left in enumerate(machine.gpus) if left != before[index]] if fits else None)
    return found
