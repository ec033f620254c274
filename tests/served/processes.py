"""The processes of the application under test, by their names in Ray and vLLM."""

from __future__ import annotations

import psutil

from tests.conftest import APPLICATION


def replica_process(deployment: str) -> psutil.Process:
    """The process of a deployment that has one replica."""
    [process] = replica_processes(deployment)
    return process


def replica_processes(deployment: str) -> list[psutil.Process]:
    """The processes of all replicas of a deployment, in the Ray of this test run."""
    name = f"ray::ServeReplica:{APPLICATION}:{deployment}"
    found = []
    raylets = [child for child in psutil.Process().children() if child.name() == "raylet"]
    for process in (process for raylet in raylets for process in raylet.children(recursive=True)):
        try:
            if " ".join(process.cmdline()).strip().split(".")[0] == name:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def engine_processes(deployment: str) -> list[psutil.Process]:
    """The vLLM engine processes of a deployment that has one replica, and of no other deployment."""
    children = replica_process(deployment).children(recursive=True)
    return [process for process in children if "VLLM::" in process.name()]
