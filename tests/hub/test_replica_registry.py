"""Who is on the roster, and who is taken off it."""

from __future__ import annotations

import math
import threading

import pytest

from rbee_serve.config import WorkerConfig
from rbee_serve.hub.replica_registry import ReplicaRegistry
from rbee_serve.state import Snapshot, WorkerState
from tests.hub.examples import WORKER, Clock, replica

TWO = WorkerConfig(id="llm-1", type="llm", replicas=2)


def redacted(state: WorkerState) -> list[str]:
    return [f"{replica.replica_id}/{replica.boot_id}/{replica.phase}" for replica in state.replicas]


def test_a_worker_of_which_nobody_has_spoken_is_loading() -> None:
    registry = ReplicaRegistry([WORKER], boot_id="hub-1")
    assert registry.snapshot() == Snapshot(
        version=1, workers=(WorkerState(worker_id="llm-1", desired_replicas=1),), hub_boot_id="hub-1"
    )
    assert registry.worker("llm-1").availability == "loading"


def test_replicas_are_listed_by_the_time_of_their_first_push() -> None:
    registry = ReplicaRegistry([TWO])
    for name in ("b", "a", "b", "c"):
        registry.push(replica(name, f"boot-{name}"))
    assert redacted(registry.worker("llm-1")) == ["b/boot-b/ready", "a/boot-a/ready", "c/boot-c/ready"]
    assert registry.worker("llm-1").boot_id == "boot-b"


def test_the_version_grows_with_a_change_and_only_then() -> None:
    registry = ReplicaRegistry([WORKER], clock=(clock := Clock()))
    registry.push(replica())
    first = registry.snapshot().version
    clock.now += 1
    registry.push(replica())
    assert registry.snapshot().version == first
    registry.push(replica(running=1))
    assert registry.snapshot().version == first + 1


@pytest.mark.parametrize(("phase", "patience_s"), [("ready", 3.5), ("stopping", 3.5), ("loading", 30.0)])
def test_a_replica_that_falls_silent_is_dropped(phase: str, patience_s: float) -> None:
    registry = ReplicaRegistry([WORKER], clock=(clock := Clock()))
    registry.push(replica(phase=phase))
    clock.now += patience_s
    assert registry.worker("llm-1").replicas
    clock.now += 0.1
    assert not registry.worker("llm-1").replicas
    assert registry.worker("llm-1").was_ready == (phase == "ready")


def test_a_failed_replica_stays_until_a_newer_boot_pushes() -> None:
    registry = ReplicaRegistry([WORKER], clock=(clock := Clock()))
    registry.push(replica(phase="error", error="no weights"))
    clock.now += 1_000_000
    assert registry.worker("llm-1").error == "no weights"
    assert registry.worker("llm-1").status == "error"
    registry.push(replica("b", "boot-b", phase="loading"))
    assert redacted(registry.worker("llm-1")) == ["b/boot-b/loading"]
    assert registry.worker("llm-1").status == "starting"


def test_a_failed_replica_is_not_forgotten_because_an_older_one_goes_on() -> None:
    registry = ReplicaRegistry([TWO])
    registry.push(replica())
    registry.push(replica("b", "boot-b", phase="error"))
    registry.push(replica(running=1))
    assert redacted(registry.worker("llm-1")) == ["a/boot-a/ready", "b/boot-b/error"]
    assert registry.worker("llm-1").ready


@pytest.mark.parametrize("late", ["loading", "stopping"])
def test_an_error_is_the_last_word_of_its_boot(late: str) -> None:
    registry = ReplicaRegistry([WORKER])
    registry.push(replica(phase="error"))
    registry.push(replica(phase=late))
    assert redacted(registry.worker("llm-1")) == ["a/boot-a/error"]


def test_a_failed_replica_holds_no_memory() -> None:
    registry = ReplicaRegistry([TWO])
    registry.push(replica())
    registry.push(replica("b", "boot-b"))
    assert registry.worker("llm-1").memory_bytes == 2000
    registry.push(replica("b", "boot-b", phase="error"))
    assert registry.worker("llm-1").memory_bytes == 1000


def test_a_replica_that_starts_again_goes_to_the_end_of_the_list() -> None:
    registry = ReplicaRegistry([TWO])
    registry.push(replica("a", "boot-a"))
    registry.push(replica("b", "boot-b"))
    registry.push(replica("a", "boot-a2"))
    assert redacted(registry.worker("llm-1")) == ["b/boot-b/ready", "a/boot-a2/ready"]


def test_a_worker_that_is_not_configured_is_none_of_ours() -> None:
    registry = ReplicaRegistry([WORKER])
    registry.push(replica(worker_id="somebody"))
    assert registry.snapshot().version == 1
    with pytest.raises(KeyError):
        registry.worker("somebody")


def test_nobody_is_ready_once_the_application_is_being_shut_down() -> None:
    registry = ReplicaRegistry([WORKER])
    registry.push(replica())
    registry.stop()
    registry.push(replica(running=3))
    assert registry.snapshot().stopping
    assert not registry.worker("llm-1").ready
    assert registry.worker("llm-1").status == "stopping"


def test_silence_is_counted_from_the_latest_push_of_a_replica_that_lives() -> None:
    registry = ReplicaRegistry([TWO], clock=(clock := Clock()))
    assert registry.seconds_since_last_push("llm-1") == math.inf
    registry.push(replica())
    clock.now += 2
    registry.push(replica("b", "boot-b", phase="error"))
    assert registry.seconds_since_last_push("llm-1") == 2
    clock.now += 2
    assert registry.seconds_since_last_push("llm-1") == math.inf


def test_subscribers_are_called_after_a_change_and_only_then() -> None:
    registry = ReplicaRegistry([WORKER], clock=(clock := Clock()))
    versions: list[int] = []
    registry.subscribe(lambda: versions.append(registry.snapshot().version))
    registry.push(replica())
    registry.push(replica())
    assert versions == [2]
    clock.now += 4
    assert not registry.snapshot().workers[0].ready
    assert versions == [2, 3]


def test_pushes_from_many_threads_are_all_counted() -> None:
    registry = ReplicaRegistry([WORKER])

    def push(name: str) -> None:
        for running in range(200):
            registry.push(replica(name, f"boot-{name}", running=running))

    threads = [threading.Thread(target=push, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [state.running for state in registry.worker("llm-1").replicas] == [199] * 8
    assert registry.snapshot().version == 1 + 8 * 200


def test_a_push_that_was_overtaken_by_a_later_one_changes_nothing() -> None:
    registry = ReplicaRegistry([WORKER])
    registry.push(replica(phase="ready"), 7)
    registry.push(replica(phase="loading"), 6)
    assert registry.worker("llm-1").ready
    registry.push(replica(boot_id="boot-b", phase="loading"), 1)
    assert not registry.worker("llm-1").ready
