"""Loads onto GPUs that do not exist: one at a time on each of them, and what is shown of the wait."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError, InsufficientVram
from rbee_serve.replica import gpu_lock, loading
from rbee_serve.replica.gpu_lock import GpuLock, lock_folder
from rbee_serve.state import LoadProgress
from rbee_serve.worker.registry import load_spec
from rbee_serve.worker.spec import Device, LoadContext
from tests.replica.timed_worker import Load, loads_in

MODULE = "tests.replica.timed_worker"
SPEC = f"{MODULE}:SPEC"


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the locks are, and the times of the loads."""
    monkeypatch.setattr(gpu_lock, "BASE_FOLDER", str(tmp_path))
    monkeypatch.setattr(gpu_lock, "gpu_name", lambda gpu_id: f"gpu-{gpu_id}")
    monkeypatch.setattr(loading, "MEMORY_PAUSE_S", 0.1)
    return tmp_path


class Loader:
    """Starts loads in this process, and keeps what they report."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.progress: dict[str, list[LoadProgress]] = {}

    async def load(
        self,
        worker_id: str,
        gpus: tuple[str, ...] = ("0",),
        *,
        share: float | None = None,
        spec_path: str = SPEC,
        timeout_s: float = 60.0,
        accelerator: str = "cuda",
        **engine: Any,
    ) -> Any:
        """What `loading.load` returns."""
        worker = WorkerConfig(
            id=worker_id,
            type=spec_path,
            gpus=share or len(gpus),
            load_timeout_s=timeout_s,
            engine={"folder": str(self._folder), **engine},
        )
        reports = self.progress.setdefault(worker_id, [])
        context = LoadContext(worker, Device(accelerator, gpus, share or 1.0), reports.append)
        return await loading.load(spec_path, load_spec(spec_path), context)

    @property
    def loads(self) -> list[Load]:
        """Those that have ended, in the order of their beginnings."""
        return loads_in(self._folder)

    def stages(self, worker_id: str) -> list[str]:
        """The stages that it has reported."""
        return [progress.stage for progress in self.progress[worker_id]]


@pytest.fixture
def loader(folder: Path) -> Loader:
    return Loader(folder)


def holding(folder: Path, gpu: int = 0, worker_id: str = "other") -> GpuLock:
    """The lock of a load by another process."""
    lock = GpuLock(lock_folder(), f"gpu-{gpu}", worker_id, 1)
    assert lock.try_acquire()
    return lock


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("spec", ["SPEC", "UNAWARE_SPEC", "OWN_PROCESS_SPEC", "UNAWARE_OWN_PROCESS_SPEC"])
async def test_loads_onto_one_gpu_come_one_after_the_other_until_each_has_warmed_up(loader: Loader, spec: str) -> None:
    backends = await asyncio.gather(*(loader.load(f"w-{n}", spec_path=f"{MODULE}:{spec}") for n in range(2)))
    for backend in backends:
        await asyncio.to_thread(backend.close)
    one, other = loader.loads
    assert not one.overlaps(other)


async def test_loads_onto_different_gpus_overlap(loader: Loader) -> None:
    await asyncio.gather(*(loader.load(f"w-{n}", (str(n),), load_s=0.5) for n in range(3)))
    assert all(one.overlaps(other) for one, other in combinations(loader.loads, 2))


async def test_downloads_happen_while_another_model_is_loaded(loader: Loader) -> None:
    started_at = time.monotonic()
    await asyncio.gather(*(loader.load(f"w-{n}", download_s=1.0, load_s=0.1) for n in range(4)))
    assert time.monotonic() - started_at < 3.0


async def test_workers_of_several_gpus_and_their_neighbours_do_not_wait_for_each_other_for_ever(loader: Loader) -> None:
    # Each of them waits in a thread, as in the process of its own that it has otherwise.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max_workers=16))
    gpus = [("0", "1"), ("1", "0"), ("1", "2"), ("2", "0"), ("0",), ("1",), ("2",), ("0", "1", "2")]
    async with asyncio.timeout(30):
        await asyncio.gather(*(loader.load(f"w-{n}", pair, load_s=0.05) for n, pair in enumerate(gpus)))
    for one, other in combinations(loader.loads, 2):
        assert not (set(one.gpus) & set(other.gpus) and one.overlaps(other))


async def test_the_largest_share_that_waits_is_loaded_first(loader: Loader, folder: Path) -> None:
    other = holding(folder)
    shares = {"small": 0.1, "large": 0.5, "middle": 0.3}
    tasks = [asyncio.create_task(loader.load(name, share=share)) for name, share in shares.items()]
    await until(lambda: len(loader.progress) == 3 and all(loader.progress.values()))
    other.release()
    await asyncio.gather(*tasks)
    assert [load.worker_id for load in loader.loads] == ["large", "middle", "small"]


async def test_the_wait_is_a_stage_that_names_the_holder(loader: Loader, folder: Path) -> None:
    other = holding(folder, worker_id="llm-0")
    task = asyncio.create_task(loader.load("w"))
    await until(lambda: bool(loader.progress.get("w")))
    assert loader.progress["w"] == [LoadProgress(stage="waiting_for_gpu", held_by="llm-0")]
    other.release()
    await task
    assert loader.stages("w") == ["waiting_for_gpu", "starting_engine", "warming_up"]


async def test_a_load_that_does_not_wait_has_no_such_stage(loader: Loader, folder: Path) -> None:
    other = holding(folder)
    await loader.load("w", ("1",))
    await loader.load("on-the-cpu", accelerator="cpu")
    assert loader.stages("w") == loader.stages("on-the-cpu") == ["warming_up"]
    other.release()


@pytest.mark.parametrize("spec", ["SPEC", "UNAWARE_SPEC"])
async def test_the_wait_does_not_count_against_the_time_limit(loader: Loader, folder: Path, spec: str) -> None:
    other = holding(folder)
    task = asyncio.create_task(loader.load("w", timeout_s=1.0, load_s=0.1, spec_path=f"{MODULE}:{spec}"))
    await asyncio.sleep(1.5)
    assert not task.done()
    other.release()
    await task


async def test_the_load_after_the_wait_has_the_time_that_was_left(loader: Loader, folder: Path) -> None:
    other = holding(folder)
    task = asyncio.create_task(loader.load("w", timeout_s=0.5, load_s=2.0))
    await asyncio.sleep(1.0)
    other.release()
    released_at = time.monotonic()
    with pytest.raises(ConfigurationError, match="load_timeout_s"):
        await task
    assert time.monotonic() - released_at < 1.5


PROCESS = """
import asyncio, sys
from rbee_serve.replica import gpu_lock
from tests.replica.test_load_turn import Loader
from pathlib import Path

gpu_lock.BASE_FOLDER = sys.argv[1]
gpu_lock.gpu_name = lambda gpu_id: f"gpu-{gpu_id}"
asyncio.run(Loader(Path(sys.argv[1])).load("killed", load_s=60, spec_path=sys.argv[2]))
"""


def started(folder: Path, spec: str) -> subprocess.Popen[bytes]:
    """A process that loads the worker `killed` for a minute."""
    return subprocess.Popen([sys.executable, "-c", PROCESS, str(folder), f"{MODULE}:{spec}"])


@pytest.mark.parametrize("spec", ["SPEC", "OWN_PROCESS_SPEC"])
async def test_a_replica_that_is_killed_in_its_load_frees_the_next(loader: Loader, folder: Path, spec: str) -> None:
    replica = started(folder, spec)
    try:
        await until((folder / "began-killed").exists, 30.0)
        task = asyncio.create_task(loader.load("w"))
        await until(lambda: bool(loader.progress.get("w")))
        assert loader.progress["w"][0].held_by == "killed"
        replica.send_signal(signal.SIGKILL)
        async with asyncio.timeout(5):
            await task
    finally:
        replica.kill()
        replica.wait()


async def test_an_engine_process_that_ends_in_its_load_frees_the_next(loader: Loader) -> None:
    first = asyncio.create_task(loader.load("broken", spec_path=f"{MODULE}:OWN_PROCESS_SPEC", exit=True))
    await until(lambda: (loader._folder / "began-broken").exists(), 30.0)
    async with asyncio.timeout(10):
        await loader.load("w")
    with pytest.raises(ConfigurationError, match="exit status 7"):
        await first


async def test_a_failed_load_keeps_its_gpu_until_its_process_has_ended(loader: Loader) -> None:
    with pytest.raises(InsufficientVram):
        await loader.load("fails", vram_errors=1)
    task = asyncio.create_task(loader.load("w"))
    await until(lambda: bool(loader.progress.get("w")))
    assert loader.progress["w"] == [LoadProgress(stage="waiting_for_gpu", held_by="fails")]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_load_that_is_cancelled_while_it_waits_is_passed_over(loader: Loader, folder: Path) -> None:
    other = holding(folder)
    waiting = asyncio.create_task(loader.load("cancelled", share=0.9))
    await until(lambda: bool(loader.progress.get("cancelled")))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    other.release()
    async with asyncio.timeout(5):
        await loader.load("w", share=0.1)


@pytest.mark.parametrize("spec", ["SPEC", "OWN_PROCESS_SPEC"])
async def test_memory_that_was_short_while_others_loaded_is_tried_once_more_after_all_who_wait(
    loader: Loader, folder: Path, spec: str
) -> None:
    other = holding(folder)
    large = asyncio.create_task(loader.load("large", share=0.9, vram_errors=1, spec_path=f"{MODULE}:{spec}"))
    small = asyncio.create_task(loader.load("small", share=0.1))
    await until(lambda: len(loader.progress) == 2 and all(loader.progress.values()))
    other.release()
    await small
    await asyncio.to_thread((await large).close)
    assert [load.worker_id for load in loader.loads] == ["large", "small", "large"]


async def test_memory_that_is_short_again_is_the_error(loader: Loader, folder: Path) -> None:
    other = holding(folder)
    task = asyncio.create_task(loader.load("w", vram_errors=2))
    await until(lambda: bool(loader.progress.get("w")))
    other.release()
    with pytest.raises(InsufficientVram):
        await task
    assert len(loader.loads) == 2


async def test_memory_that_is_short_without_others_is_the_error_at_once(loader: Loader, folder: Path) -> None:
    holding(folder, 1)
    with pytest.raises(InsufficientVram):
        await loader.load("w", vram_errors=1)
    assert len(loader.loads) == 1
