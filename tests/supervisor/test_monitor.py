"""The output while workers load, and when one of them is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from rbee_serve.deploy_status import DeploymentStatus, DeployStatus, first_sentence, last_line
from rbee_serve.state import LoadProgress
from rbee_serve.supervisor import monitor as monitor_module
from rbee_serve.supervisor.application_client import open_client
from rbee_serve.supervisor.display import make_display
from rbee_serve.supervisor.load_progress import Load
from rbee_serve.supervisor.monitor import StartFailed, Workers, monitor, wait_for_load
from tests.supervisor.application import broken, checked_for, loading, running, up


def failed_deployment(name: str, message: str, replicas: int = 0) -> dict[str, DeploymentStatus]:
    return {name: DeploymentStatus("DEPLOY_FAILED", replicas, replicas, message)}


Script = Sequence[list[dict[str, Any]] | None]


def at_once(seconds: float) -> bool:
    return False


def waited(
    script: Script,
    status: Callable[[], DeployStatus] = DeployStatus,
    terminal: bool = False,
    wait: Callable[[float], bool] = at_once,
) -> tuple[Workers | None, str]:
    """The result of `wait_for_load`, and the output."""
    screen = StringIO()
    console = Console(file=screen, force_terminal=terminal, width=100, color_system=None)
    with (
        running(script) as application,
        make_display(console) as display,
        open_client(application.checked) as client,
    ):
        return wait_for_load(client, status, display, wait), screen.getvalue()


def test_without_a_terminal_each_change_is_a_line() -> None:
    workers, screen = waited(
        [
            None,
            [loading("llm-0", stage="converting", bytes_done=0, bytes_total=2_000_000_000)],
            [loading("llm-0", stage="converting", bytes_done=100_000_000, bytes_total=2_000_000_000)],
            [loading("llm-0", stage="converting", bytes_done=1_000_000_000, bytes_total=2_000_000_000)],
            [loading("llm-0", stage="waiting_for_gpu", held_by="draw-0")],
            [loading("llm-0", stage="waiting_for_gpu", held_by="draw-0")],
            [loading("llm-0", stage="waiting_for_gpu", held_by="classify-0")],
            [loading("llm-0", stage="loading_to_vram", layers_loaded=0, layers_total=30)],
            [loading("llm-0", stage="loading_to_vram", layers_loaded=29, layers_total=30)],
            [loading("llm-0", stage="warming_up")],
            [loading("llm-0", stage="warming_up")],
            [up("llm-0")],
        ]
    )
    assert workers is not None
    assert workers[0].ready
    assert screen.splitlines() == [
        "llm-0: converting 0.0 of 2.0 GB",
        "llm-0: converting 1.0 of 2.0 GB",
        "llm-0: waiting for gpu, held by draw-0",
        "llm-0: waiting for gpu, held by classify-0",
        "llm-0: loading to vram 0 of 30 layers",
        "llm-0: loading to vram 29 of 30 layers",
        "llm-0: warming up",
        "llm-0: ready",
    ]


def test_on_a_terminal_every_worker_has_a_bar() -> None:
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with make_display(console) as display, running([[up("a")]]) as application:
        application.script = [
            [
                loading("a", stage="downloading", bytes_done=30_000_000, bytes_total=120_000_000),
                loading("bee-1", stage="x"),
            ],
            [up("a"), up("bee-1")],
        ]
        with open_client(application.checked) as client:
            workers = client.ready().workers
        display.step("starting Ray")
        display.workers({worker.id: worker for worker in workers}, {})
    last = screen.getvalue().rpartition("\x1b[?25h")[0]
    assert "a     ━━━━━━" in last
    assert "downloading 30.0 of 120.0 MB" in last
    assert "bee-1" in last


def test_a_failed_load_is_shown_with_its_reason_and_the_others_go_on() -> None:
    workers, screen = waited(
        [[broken("a", "no such file"), loading("b", stage="warming_up")], [broken("a", "x"), up("b")]]
    )
    assert [(worker.ready, worker.failed) for worker in workers or ()] == [(False, True), (True, False)]
    assert "a: failed: no such file" in screen


def test_an_application_that_ray_serve_cannot_build_ends_the_start() -> None:
    failed = DeployStatus(failed=True, message="the model is gone")
    with pytest.raises(StartFailed, match="the model is gone"):
        waited([None], lambda: failed)


def test_where_only_workers_have_failed_the_ingress_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = DeployStatus(failed=True, deployments=failed_deployment("a", "see its log"))
    workers, _ = waited([None, None, [broken("a", "no such file")]], lambda: failed)
    assert workers is not None
    assert workers[0].reason == "no such file"
    monkeypatch.setattr(monitor_module, "INGRESS_S", 0.0)
    with pytest.raises(StartFailed, match="see its log"):
        waited([None], lambda: failed)
    with pytest.raises(StartFailed, match="it was killed"):
        waited([None], lambda: DeployStatus(failed=True, deployments=failed_deployment("ingress", "it was killed")))


def test_a_worker_that_does_not_report_its_failure_has_ray_serves_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_module, "STATUS_S", 0.0)
    failed = DeployStatus(failed=True, deployments=failed_deployment("a", "it was killed"))
    workers, _ = waited([[loading("a", stage="x"), up("b")]], lambda: failed)
    assert workers is not None
    assert (workers[0].failed, workers[0].reason) == (True, "it was killed")


def test_ray_serves_hint_is_shown_while_the_worker_reports_no_progress() -> None:
    waiting = DeployStatus(hints={"a": "it waits for 4 CPUs"})
    _, screen = waited([[{"id": "a", "ready": False, "state": "loading"}], [up("a")]], lambda: waiting)
    assert screen.splitlines() == ["a: it waits for 4 CPUs", "a: ready"]


def test_a_signal_ends_the_wait() -> None:
    assert waited([[loading("a", stage="x")]], wait=lambda seconds: True)[0] is None


def test_the_token_is_sent(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    with running([[up("a")]], tmp_path / "token") as application, open_client(application.checked) as client:
        assert client.ready().workers[0].ready
    assert application.tokens == ["Bearer s3cret"]


def monitored(script: Script, rounds: int, alive: bool = True) -> tuple[bool, list[str]]:
    shown: list[str] = []
    waits = iter([False] * rounds + [True])
    with running([[up("a")], *script]) as application, open_client(application.checked) as client:
        lived = monitor(client, lambda: alive, client.ready().workers, shown.append, lambda seconds: next(waits))
    return lived, [line.partition(" ")[2] for line in shown]


def test_a_lost_worker_and_its_return_are_shown_once_each() -> None:
    lost = {"id": "a", "ready": False, "state": "loading", "reason": "worker a was lost and is being replaced"}
    assert monitored([[up("a")], [lost], [lost], None, [up("a")], [up("a")]], rounds=6) == (
        True,
        ["a: worker a was lost and is being replaced", "a: ready"],
    )


def test_each_step_of_a_replacement_is_shown_once_with_the_reason_of_the_loss() -> None:
    def lost(reason: str, **progress: Any) -> list[dict[str, Any]]:
        return [{"id": "a", "ready": False, "state": "loading", "reason": reason, "progress": progress or None}]

    starts, loads = (f"its engine is dead; a replacement is {what}" for what in ("starting", "loading"))
    script = [lost(starts), lost(starts), lost(loads, stage="x"), lost(loads, stage="y"), [broken("a", "no file")]]
    assert monitored([*script, [up("a")]], rounds=7) == (
        True,
        [f"a: {starts}", f"a: {loads}", "a: failed: no file", "a: ready"],
    )


def test_the_loss_of_one_of_several_replicas_is_shown() -> None:
    degraded = up("a") | {"reason": "its process has ended; a replacement is starting"}
    assert monitored([[up("a")], [degraded], [degraded], [up("a")]], rounds=5) == (
        True,
        ["a: its process has ended; a replacement is starting", "a: ready"],
    )


def test_a_deployment_that_still_starts_a_replica_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_module, "STATUS_S", 0.0)
    failed = DeployStatus(failed=True, deployments=failed_deployment("a", "it was killed", replicas=1))
    workers, _ = waited([[loading("a", stage="x")], [loading("a", stage="x")], [up("a")]], lambda: failed)
    assert workers is not None
    assert workers[0].ready


def test_the_end_of_ray_ends_the_monitoring() -> None:
    assert monitored([[up("a")]], rounds=3, alive=False) == (False, [])


def test_an_application_that_does_not_respond_shows_no_change() -> None:
    shown: list[str] = []
    waits = iter([False, True])
    with open_client(checked_for("http://127.0.0.1:9", 9)) as client:
        assert monitor(client, lambda: True, (), shown.append, lambda seconds: next(waits))
    assert shown == []


@pytest.mark.parametrize(
    ("progress", "amount"),
    [
        ({"stage": "x", "bytes_done": 5, "bytes_total": 900}, "5.0 of 900.0 B"),
        ({"stage": "x", "bytes_done": 1500}, "1.5 kB"),
        ({"stage": "x", "layers_loaded": 3}, "3 layers"),
        ({"stage": "x", "vram_mb": 3}, ""),
        ({"stage": "x", "layers_loaded": 1, "layers_total": 2, "bytes_done": 5}, "1 of 2 layers"),
    ],
)
def test_an_amount_has_its_unit(progress: dict[str, Any], amount: str) -> None:
    assert Load.of(msgspec.convert(progress, LoadProgress)).amount == amount


def test_ray_serves_messages_are_shortened() -> None:
    message = (
        "The deployment failed to start 1 times.\nTraceback:\n  File x\nrbee_serve.errors.ConfigurationError: no file\n"
    )
    assert last_line(message) == "no file"
    assert first_sentence("Deployment 'a' has 1 replicas that wait.  Resources required: {}. More.") == (
        "Deployment 'a' has 1 replicas that wait"
    )
