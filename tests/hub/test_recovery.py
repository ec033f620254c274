"""What is shown of a worker while it is down, by what its replicas and Ray Serve report, on a clock set by hand."""

from __future__ import annotations

import pytest

from rbee_serve.config import WorkerConfig
from rbee_serve.deploy_status import DeploymentStatus
from rbee_serve.hub.recovery import MAX_REASON, SETTLED_S, WAITING_S, WAITS
from rbee_serve.hub.replica_registry import ReplicaRegistry
from rbee_serve.state import STALE_AFTER_S, WorkerState
from tests.hub.examples import WORKER, Clock, replica

TWO = WorkerConfig(id="llm-1", type="llm", replicas=2)
STARTS = DeploymentStatus("UNHEALTHY", replicas=1, starting=1)
STOPS_AND_STARTS = DeploymentStatus("UNHEALTHY", replicas=2, starting=1)
FAILED_AND_STARTS = DeploymentStatus("DEPLOY_FAILED", replicas=1, starting=1)
GIVEN_UP = DeploymentStatus("DEPLOY_FAILED")


class Hub:
    """A registry of one worker, and its clock."""

    def __init__(self, worker: WorkerConfig = WORKER) -> None:
        self.clock = Clock()
        self.registry = ReplicaRegistry([worker], clock=self.clock)

    def push(self, name: str = "a", connection: str | None = None, **changes: object) -> None:
        """An update of the first boot of that replica, over a connection of its own."""
        self.registry.push(replica(name, f"boot-{name}", **changes), source=connection or name)

    def serve_reports(self, status: DeploymentStatus, for_s: float = SETTLED_S) -> None:
        """Ray Serve reports the same once a second."""
        for _ in range(int(for_s) + 1):
            self.registry.observe({"llm-1": status}, self.clock.now)
            self.clock.now += 1
        self.clock.now -= 1

    @property
    def worker(self) -> WorkerState:
        """The worker at this moment."""
        return self.registry.worker("llm-1")

    @property
    def shown(self) -> tuple[str, str]:
        """Its state and reason."""
        return self.worker.availability, self.worker.reason


def ready_hub() -> Hub:
    hub = Hub()
    hub.push()
    assert hub.worker.ready
    return hub


def test_a_killed_process_is_being_replaced_and_never_broken() -> None:
    hub = ready_hub()
    hub.registry.disconnect("a")
    assert hub.shown == ("loading", "its process has ended; a replacement is starting")
    hub.serve_reports(STARTS, 100)
    assert hub.worker.availability == "loading"
    hub.push("b", phase="loading")
    assert hub.shown == ("loading", "its process has ended; a replacement is starting")
    hub.push("b")
    assert hub.worker.ready
    assert hub.worker.lost is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("its engine is dead", "its engine is dead; a replacement is starting"),
        (None, "its engine is dead or hangs; a replacement is starting"),
    ],
)
def test_an_unhealthy_replica_is_being_replaced_before_ray_serve_has_noticed(error: str | None, reason: str) -> None:
    hub = ready_hub()
    hub.push(healthy=False, error=error)
    assert hub.shown == ("loading", reason)
    hub.serve_reports(DeploymentStatus("HEALTHY", replicas=1), 30)
    assert hub.shown == ("loading", reason)
    hub.registry.disconnect("a")  # Serve kills it; that its process has ended is not the reason
    assert hub.shown == ("loading", reason)


def test_an_engine_that_recovers_serves_again() -> None:
    hub = ready_hub()
    hub.push(healthy=False, error="its engine has made no step for 30 s")
    hub.push()
    assert hub.worker.ready
    assert hub.worker.lost is None


def test_a_replica_that_falls_silent_is_being_replaced() -> None:
    hub = ready_hub()
    hub.clock.now += STALE_AFTER_S + 0.1
    assert hub.shown == ("loading", "its process does not respond; a replacement is starting")


def test_a_replacement_that_fails_is_tried_again_as_long_as_ray_serve_does() -> None:
    hub = ready_hub()
    hub.registry.disconnect("a")
    for name in "bcd":
        hub.push(name, phase="loading")
        hub.push(name, phase="error", error="worker llm-1: no such file", error_code="WORKER_UNHEALTHY")
        assert hub.shown == ("loading", "no such file; a replacement is starting")
        hub.serve_reports(STOPS_AND_STARTS, 1)
        hub.serve_reports(STARTS, 10)
        assert hub.worker.availability == "loading"
    hub.push("e")
    assert hub.worker.ready


def test_a_replacement_that_is_killed_while_it_loads_is_tried_again() -> None:
    hub = ready_hub()
    hub.registry.disconnect("a")
    hub.push("b", phase="loading")
    hub.registry.disconnect("b")
    assert hub.worker.availability == "loading"
    assert hub.worker.reason.startswith("its process ended during the load")


def test_a_first_load_that_fails_has_failed_for_good_at_once() -> None:
    hub = Hub()
    hub.push(phase="loading")
    assert hub.worker.availability == "loading"
    hub.push(phase="error", error="no weights")
    assert hub.shown == ("error", "no weights")
    hub.serve_reports(DeploymentStatus("UPDATING", replicas=1, starting=1), 1)  # it has not noticed yet
    assert hub.shown == ("error", "no weights")
    hub.serve_reports(GIVEN_UP, 100)
    assert hub.shown == ("error", "no weights")


def test_a_process_that_is_killed_in_its_first_load_has_failed_once_ray_serve_gives_up() -> None:
    hub = Hub()
    hub.push(phase="loading")
    hub.registry.disconnect("a")
    hub.serve_reports(GIVEN_UP, SETTLED_S - 1)
    assert hub.shown[0] == "loading"
    hub.serve_reports(GIVEN_UP, 1)
    assert hub.shown[0] == "error"
    assert hub.worker.reason.startswith("its process ended during the load")
    assert [one.boot_id for one in hub.worker.replicas] == ["boot-a"]  # for the report to the orchestrator


def test_a_loading_replica_that_only_lost_its_connection_goes_on() -> None:
    hub = Hub()
    hub.push(phase="loading")
    hub.registry.disconnect("a")
    hub.push("a", "another connection", phase="loading")
    assert hub.shown == ("loading", hub.worker.reason)
    hub.push("a", "another connection")
    assert hub.worker.ready


def test_a_worker_whose_first_process_never_starts_has_failed_once_ray_serve_gives_up() -> None:
    hub = Hub()
    hub.serve_reports(DeploymentStatus("UPDATING", replicas=1, starting=1), 3)
    assert hub.worker.availability == "loading"
    hub.serve_reports(GIVEN_UP, SETTLED_S + 1)
    assert hub.shown == ("error", "no replica could be started; Ray Serve's log has the reason")


def test_one_of_two_first_loads_that_fails_is_not_the_end_while_the_other_goes_on() -> None:
    hub = Hub(TWO)
    hub.push("a", phase="loading")
    hub.push("a", phase="error", error="out of memory")
    assert hub.shown == ("loading", "out of memory; another attempt is starting")  # the other process still starts
    hub.serve_reports(FAILED_AND_STARTS, 20)
    hub.push("b", phase="loading")
    assert hub.worker.availability == "loading"
    hub.push("b")
    assert hub.worker.ready


@pytest.mark.parametrize("reported", [True, False])
def test_two_first_loads_that_fail_are_the_end(reported: bool) -> None:
    hub = Hub(TWO)
    for name in "ab":
        hub.push(name, phase="loading")
    for name in "ab":
        if reported:
            hub.push(name, phase="error", error="out of memory")
        else:
            hub.registry.disconnect(name)
    assert hub.worker.availability == ("error" if reported else "loading")
    hub.serve_reports(GIVEN_UP)
    assert hub.worker.availability == "error"


def test_one_of_two_replicas_that_is_lost_leaves_the_worker_ready_and_degraded() -> None:
    hub = Hub(TWO)
    hub.push("a")
    hub.push("b")
    hub.registry.disconnect("a")
    hub.push("b")
    assert (hub.worker.ready, hub.worker.degraded, hub.worker.lost) == (True, True, "its process has ended")
    hub.push("c", phase="loading")
    hub.push("c")
    assert (hub.worker.degraded, hub.worker.lost) == (False, None)


def test_a_failed_deployment_of_a_worker_that_served_is_the_end_until_the_next_one() -> None:
    hub = ready_hub()
    hub.push(phase="stopping")
    hub.registry.disconnect("a")
    hub.push("b", phase="loading")
    hub.push("b", phase="error", error="no such file")
    assert hub.worker.availability == "loading"
    hub.serve_reports(GIVEN_UP)
    assert hub.shown == ("error", "no such file")
    hub.push("c", phase="loading")  # the operator has deployed again
    assert hub.worker.availability == "loading"


def test_a_new_deployment_that_waits_for_resources_ends_the_verdict() -> None:
    hub = Hub()
    hub.push(phase="error", error="no weights")
    hub.serve_reports(GIVEN_UP, 20)
    hub.serve_reports(DeploymentStatus("UPDATING", replicas=1, starting=1))
    assert hub.worker.availability == "loading"


def test_a_replica_that_does_not_start_waits_for_resources() -> None:
    hub = ready_hub()
    hub.registry.disconnect("a")
    hub.serve_reports(STARTS, WAITING_S - 1)
    assert hub.worker.waits_for is None
    hub.serve_reports(STARTS, 1)
    assert hub.shown == ("loading", f"its process has ended; a replacement is starting: {WAITS}")
    hub.push("b", phase="loading")
    assert hub.worker.waits_for is None


def test_a_hub_that_starts_while_a_worker_is_replaced_learns_that_it_was_ready() -> None:
    hub = Hub()
    assert not hub.worker.was_ready
    hub.serve_reports(STARTS, 0)
    assert hub.worker.was_ready
    hub.push("b", phase="loading")
    hub.push("b", phase="error", error="no such file")
    assert hub.worker.availability == "loading"


def test_an_answer_counts_only_with_a_later_one_that_is_the_same() -> None:
    hub = ready_hub()
    hub.registry.disconnect("a")
    hub.serve_reports(GIVEN_UP, 0)  # between the end of a replica and the start of the next one
    hub.clock.now += 60  # the controller hangs
    assert hub.worker.availability == "loading"
    hub.registry.observe({"llm-1": GIVEN_UP}, hub.clock.now - 60)  # what was asked before that
    assert hub.worker.availability == "loading"
    hub.serve_reports(STARTS, 10)
    assert hub.worker.availability == "loading"
    hub.serve_reports(GIVEN_UP)
    assert hub.shown == ("error", "its process has ended")


def test_a_failed_load_stays_failed_while_ray_serve_stops_its_replica() -> None:
    hub = Hub()
    hub.push(phase="loading")
    hub.push(phase="error", error="no such file")
    hub.serve_reports(DeploymentStatus("DEPLOY_FAILED", replicas=1), 0)
    for _ in range(20):  # asked every five seconds now
        assert hub.shown == ("error", "no such file")
        hub.clock.now += 0.25
    hub.serve_reports(GIVEN_UP)
    assert hub.shown == ("error", "no such file")


def test_ray_serve_is_asked_only_about_workers_of_which_no_replica_serves_or_loads() -> None:
    hub = Hub()
    assert hub.registry.down() == ("llm-1",)
    hub.push(phase="loading")
    assert hub.registry.down() == ()
    hub.push()
    assert hub.registry.down() == ()
    hub.push(healthy=False)
    assert hub.registry.down() == ("llm-1",)
    hub.push(phase="error")
    assert hub.registry.down() == ("llm-1",)


def test_a_report_about_another_deployment_is_ignored() -> None:
    hub = ready_hub()
    hub.registry.observe({"ingress": GIVEN_UP, "hub": STARTS}, hub.clock.now)
    assert hub.worker.ready


def test_a_long_reason_is_shortened() -> None:
    hub = ready_hub()
    hub.push(healthy=False, error="x" * 5000)
    assert hub.worker.lost == "x" * MAX_REASON


def test_the_loss_and_the_return_of_a_worker_are_logged_once_each(caplog: pytest.LogCaptureFixture) -> None:
    hub = ready_hub()
    hub.push(healthy=False, error="its engine is dead")
    hub.push(healthy=False, error="its engine is dead", running=1)
    hub.registry.disconnect("a")
    hub.push("b", phase="loading")
    hub.push("b")
    assert [record.message for record in caplog.records] == [
        "worker llm-1: its engine is dead; Ray Serve starts another replica",
        "worker llm-1 serves again",
    ]


@pytest.mark.parametrize(
    ("status", "given_up"),
    [
        (DeploymentStatus("HEALTHY", replicas=0), False),
        (DeploymentStatus("UPDATING", replicas=0), False),
        (STARTS, False),
        (FAILED_AND_STARTS, False),
        (DeploymentStatus("UNHEALTHY"), True),
        (GIVEN_UP, True),
    ],
)
def test_ray_serve_has_given_up_where_it_has_seen_a_failure_and_has_no_replica(
    status: DeploymentStatus, given_up: bool
) -> None:
    assert status.given_up == given_up
