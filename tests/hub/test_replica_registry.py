"""Which replicas are live, and what the snapshot shows of them."""

from __future__ import annotations

import threading

import pytest

from rbee_serve.config import WorkerConfig
from rbee_serve.hub.replica_registry import ReplicaRegistry
from rbee_serve.state import STALE_AFTER_S, Snapshot, WorkerState
from tests.hub.examples import WORKER, Clock, replica

TWO = WorkerConfig(id="llm-1", type="llm", replicas=2)


def shown(state: WorkerState) -> list[str]:
    return [f"{replica.replica_id}/{replica.boot_id}/{replica.phase}" for replica in state.replicas]


def test_a_worker_without_updates_is_loading() -> None:
    registry = ReplicaRegistry([WORKER], boot_id="hub-1")
    assert registry.snapshot() == Snapshot(
        version=1, workers=(WorkerState(worker_id="llm-1", desired_replicas=1),), hub_boot_id="hub-1"
    )
    assert registry.worker("llm-1").availability == "loading"


def test_replicas_are_listed_by_the_time_of_their_first_update() -> None:
    registry = ReplicaRegistry([TWO])
    for name in ("b", "a", "b", "c"):
        registry.push(replica(name, f"boot-{name}"))
    assert shown(registry.worker("llm-1")) == ["b/boot-b/ready", "a/boot-a/ready", "c/boot-c/ready"]
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


@pytest.mark.parametrize("phase", ["ready", "stopping"])
def test_a_replica_without_updates_becomes_stale_and_is_removed(phase: str) -> None:
    registry = ReplicaRegistry([WORKER], clock=(clock := Clock()))
    registry.push(replica(phase=phase))
    clock.now += STALE_AFTER_S
    assert registry.worker("llm-1").replicas
    clock.now += 0.1
    assert not registry.worker("llm-1").replicas
    assert registry.worker("llm-1").was_ready == (phase == "ready")


def test_a_loading_replica_never_becomes_stale() -> None:
    registry = ReplicaRegistry([WORKER], clock=(clock := Clock()))
    registry.push(replica(phase="loading"))
    clock.now += 1_000_000
    assert registry.worker("llm-1").replicas


def test_a_lost_connection_removes_the_replicas_that_it_carried_unless_they_have_failed() -> None:
    registry = ReplicaRegistry([TWO])
    registry.push(replica("a", "boot-a"), 1, "connection 1")
    registry.push(replica("b", "boot-b", phase="loading"), 1, "connection 2")
    registry.push(replica("c", "boot-c", phase="error"), 1, "connection 1")
    version = registry.snapshot().version
    registry.disconnect("connection 3")
    assert registry.snapshot().version == version
    registry.disconnect("connection 1")
    assert shown(registry.worker("llm-1")) == ["b/boot-b/loading", "c/boot-c/error"]
    assert registry.snapshot().version == version + 1


def test_a_failed_replica_stays_until_the_update_of_a_newer_boot() -> None:
    registry = ReplicaRegistry([WORKER], clock=(clock := Clock()))
    registry.push(replica(phase="error", error="no weights"))
    clock.now += 1_000_000
    assert registry.worker("llm-1").error == "no weights"
    assert registry.worker("llm-1").status == "error"
    registry.push(replica("b", "boot-b", phase="loading"))
    assert shown(registry.worker("llm-1")) == ["b/boot-b/loading"]
    assert registry.worker("llm-1").status == "starting"


def test_a_failed_replica_stays_while_an_older_one_sends_updates() -> None:
    registry = ReplicaRegistry([TWO])
    registry.push(replica())
    registry.push(replica("b", "boot-b", phase="error"))
    registry.push(replica(running=1))
    assert shown(registry.worker("llm-1")) == ["a/boot-a/ready", "b/boot-b/error"]
    assert registry.worker("llm-1").ready


@pytest.mark.parametrize("late", ["loading", "stopping"])
def test_an_error_is_final_for_its_boot(late: str) -> None:
    registry = ReplicaRegistry([WORKER])
    registry.push(replica(phase="error"))
    registry.push(replica(phase=late))
    assert shown(registry.worker("llm-1")) == ["a/boot-a/error"]


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
    assert shown(registry.worker("llm-1")) == ["b/boot-b/ready", "a/boot-a2/ready"]


def test_an_update_of_a_worker_that_is_not_configured_is_ignored() -> None:
    registry = ReplicaRegistry([WORKER])
    registry.push(replica(worker_id="somebody"))
    assert registry.snapshot().version == 1
    with pytest.raises(KeyError):
        registry.worker("somebody")


def test_no_worker_is_ready_after_the_drain_has_begun() -> None:
    registry = ReplicaRegistry([WORKER])
    registry.push(replica())
    registry.drain()
    registry.push(replica(running=3))
    assert registry.snapshot().stopping
    assert not registry.worker("llm-1").ready
    assert registry.worker("llm-1").status == "stopping"


def test_an_abort_is_in_the_snapshot() -> None:
    registry = ReplicaRegistry([WORKER])
    registry.abort()
    assert registry.snapshot().stopping
    assert registry.snapshot().aborting


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


def test_updates_from_many_threads_are_all_counted() -> None:
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


def test_an_update_that_a_later_one_has_overtaken_is_ignored() -> None:
    registry = ReplicaRegistry([WORKER])
    registry.push(replica(phase="ready"), 7)
    registry.push(replica(phase="loading"), 6)
    assert registry.worker("llm-1").ready
    registry.push(replica(boot_id="boot-b", phase="loading"), 1)
    assert not registry.worker("llm-1").ready
