"""Who is on the roster, and who is taken off it."""

from __future__ import annotations

import math
import threading
import time

import pytest

from rbee_serve.config import WorkerConfig
from rbee_serve.hub.replica_registry import Roster
from rbee_serve.state import Snapshot, WorkerState
from tests.hub.examples import WORKER, Clock, replica

TWO = WorkerConfig(id="llm-1", type="llm", replicas=2)


def shown(state: WorkerState) -> list[str]:
    return [f"{replica.replica_id}/{replica.boot_id}/{replica.phase}" for replica in state.replicas]


def test_a_worker_of_which_nobody_has_spoken_is_loading() -> None:
    roster = Roster([WORKER], boot_id="hub-1")
    assert roster.snapshot() == Snapshot(
        version=1, workers=(WorkerState(worker_id="llm-1", wanted=1),), hub_boot_id="hub-1"
    )
    assert roster.worker("llm-1").availability == "loading"


def test_replicas_are_listed_by_the_time_of_their_first_push() -> None:
    roster = Roster([TWO])
    for name in ("b", "a", "b", "c"):
        roster.push(replica(name, f"boot-{name}"))
    assert shown(roster.worker("llm-1")) == ["b/boot-b/ready", "a/boot-a/ready", "c/boot-c/ready"]
    assert roster.worker("llm-1").boot_id == "boot-b"


def test_the_version_grows_with_a_change_and_only_then() -> None:
    roster = Roster([WORKER], clock=(clock := Clock()))
    roster.push(replica())
    first = roster.snapshot().version
    clock.now += 1
    roster.push(replica())
    assert roster.snapshot().version == first
    roster.push(replica(running=1))
    assert roster.snapshot().version == first + 1


@pytest.mark.parametrize(("phase", "patience_s"), [("ready", 3.5), ("stopping", 3.5), ("loading", 30.0)])
def test_a_replica_that_falls_silent_is_dropped(phase: str, patience_s: float) -> None:
    roster = Roster([WORKER], clock=(clock := Clock()))
    roster.push(replica(phase=phase))
    clock.now += patience_s
    assert roster.worker("llm-1").replicas
    clock.now += 0.1
    assert not roster.worker("llm-1").replicas
    assert roster.worker("llm-1").was_ready == (phase == "ready")


def test_a_failed_replica_stays_until_a_newer_boot_pushes() -> None:
    roster = Roster([WORKER], clock=(clock := Clock()))
    roster.push(replica(phase="error", error="no weights"))
    clock.now += 1_000_000
    assert roster.worker("llm-1").error == "no weights"
    assert roster.worker("llm-1").status == "error"
    roster.push(replica("b", "boot-b", phase="loading"))
    assert shown(roster.worker("llm-1")) == ["b/boot-b/loading"]
    assert roster.worker("llm-1").status == "starting"


def test_a_failed_replica_is_not_forgotten_because_an_older_one_goes_on() -> None:
    roster = Roster([TWO])
    roster.push(replica())
    roster.push(replica("b", "boot-b", phase="error"))
    roster.push(replica(running=1))
    assert shown(roster.worker("llm-1")) == ["a/boot-a/ready", "b/boot-b/error"]
    assert roster.worker("llm-1").ready


@pytest.mark.parametrize("late", ["loading", "stopping"])
def test_an_error_is_the_last_word_of_its_boot(late: str) -> None:
    roster = Roster([WORKER])
    roster.push(replica(phase="error"))
    roster.push(replica(phase=late))
    assert shown(roster.worker("llm-1")) == ["a/boot-a/error"]


def test_a_failed_replica_holds_no_memory() -> None:
    roster = Roster([TWO])
    roster.push(replica())
    roster.push(replica("b", "boot-b"))
    assert roster.worker("llm-1").memory_bytes == 2000
    roster.push(replica("b", "boot-b", phase="error"))
    assert roster.worker("llm-1").memory_bytes == 1000


def test_a_replica_that_starts_again_goes_to_the_end_of_the_list() -> None:
    roster = Roster([TWO])
    roster.push(replica("a", "boot-a"))
    roster.push(replica("b", "boot-b"))
    roster.push(replica("a", "boot-a2"))
    assert shown(roster.worker("llm-1")) == ["b/boot-b/ready", "a/boot-a2/ready"]


def test_a_worker_that_is_not_configured_is_none_of_ours() -> None:
    roster = Roster([WORKER])
    roster.push(replica(worker_id="somebody"))
    assert roster.snapshot().version == 1
    with pytest.raises(KeyError):
        roster.worker("somebody")


def test_nobody_is_ready_once_the_application_is_being_shut_down() -> None:
    roster = Roster([WORKER])
    roster.push(replica())
    roster.stop()
    roster.push(replica(running=3))
    assert roster.snapshot().stopping
    assert not roster.worker("llm-1").ready
    assert roster.worker("llm-1").status == "stopping"


def test_silence_is_counted_from_the_latest_push_of_a_replica_that_lives() -> None:
    roster = Roster([TWO], clock=(clock := Clock()))
    assert roster.silence_s("llm-1") == math.inf
    roster.push(replica())
    clock.now += 2
    roster.push(replica("b", "boot-b", phase="error"))
    assert roster.silence_s("llm-1") == 2
    clock.now += 2
    assert roster.silence_s("llm-1") == math.inf


def test_waiting_ends_with_the_push_that_was_waited_for() -> None:
    roster = Roster([WORKER])
    later = threading.Timer(0.1, roster.push, [replica()])
    later.start()
    began = time.monotonic()
    assert roster.wait_for(lambda snapshot: snapshot.workers[0].ready, 5).workers[0].ready
    assert time.monotonic() - began < 1
    later.join()


def test_waiting_ends_when_a_replica_has_been_silent_for_too_long() -> None:
    moved_s = [0.0]
    roster = Roster([WORKER], clock=lambda: time.monotonic() + moved_s[0])
    roster.push(replica())
    moved_s[0] = 3.3
    began = time.monotonic()
    assert not roster.wait_for(lambda snapshot: not snapshot.workers[0].ready, 5).workers[0].ready
    assert 0.1 < time.monotonic() - began < 1


def test_waiting_ends_by_itself_and_by_a_wake_up() -> None:
    roster = Roster([WORKER])
    assert roster.wait_for(lambda snapshot: False, 0.05).version == 1
    woken = threading.Event()

    def wake() -> None:
        woken.set()
        roster.wake()

    later = threading.Timer(0.05, wake)
    later.start()
    roster.wait_for(lambda snapshot: woken.is_set(), 5)
    later.join()


def test_pushes_from_many_threads_are_all_counted() -> None:
    roster = Roster([WORKER])

    def push(name: str) -> None:
        for running in range(200):
            roster.push(replica(name, f"boot-{name}", running=running))

    threads = [threading.Thread(target=push, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [state.running for state in roster.worker("llm-1").replicas] == [199] * 8
    assert roster.snapshot().version == 1 + 8 * 200


def test_a_push_that_was_overtaken_by_a_later_one_changes_nothing() -> None:
    roster = Roster([WORKER])
    roster.push(replica(phase="ready"), 7)
    roster.push(replica(phase="loading"), 6)
    assert roster.worker("llm-1").ready
    roster.push(replica(boot_id="boot-b", phase="loading"), 1)
    assert not roster.worker("llm-1").ready
