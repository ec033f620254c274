"""Samples of py-spy, sorted into steps."""

from __future__ import annotations

from benchmarks.stacks import OTHER, Stack, by_step, parse_stacks, step_of

LOOP = "run (asyncio/runners.py:190);Runner.run (asyncio/runners.py:118)"


def test_a_line_of_py_spy_is_a_stack() -> None:
    lines = [
        f"thread (17): MainThread;{LOOP};Router.send (rbee_serve/ingress/router.py:106) 12",
        "run (asyncio/runners.py:190) 3",
        "",
        "no stack at all",
    ]
    assert parse_stacks(lines) == [
        Stack(17, ("asyncio/runners.py", "asyncio/runners.py", "rbee_serve/ingress/router.py"), 12),
        Stack(0, ("asyncio/runners.py",), 3),
    ]


def test_the_innermost_known_file_counts() -> None:
    router = "rbee_serve/ingress/router.py"
    assert step_of(["asyncio/runners.py", router]) == "ingress: from body to response"
    assert step_of(["asyncio/runners.py", router, "contextlib.py", "enum.py"]) == "ingress: from body to response"
    assert step_of([router, "asyncio/timeouts.py"]) == "event loop and tasks"
    assert step_of(["uvicorn/protocols/http/httptools_impl.py", "rbee_serve/ingress/auth.py"]) == "correlation, token"


def test_serves_own_logging_is_logging_and_not_ray() -> None:
    assert step_of(["ray/serve/_private/replica.py"]) == "Ray"
    assert step_of(["logging/__init__.py", "ray/serve/_private/logging_utils.py"]) == "logging"


def test_an_unknown_file_is_other() -> None:
    assert step_of(["runpy.py"]) == OTHER
    assert step_of([]) == OTHER


def test_samples_are_summed() -> None:
    lines = [f"thread (1): MainThread;{LOOP};frame (rbee_serve/sse.py:39) {count}" for count in (2, 3)]
    assert by_step(parse_stacks([*lines, f"{LOOP} 5"])) == {"encoding": 5, "event loop and tasks": 5}
