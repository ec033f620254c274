"""`without_stop_iteration`: for model code whose result goes into a future."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def without_stop_iteration(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, whose `StopIteration` is raised as `RuntimeError`. A future cannot hold a `StopIteration`: a task
    that awaits the function in a thread would never resume."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except StopIteration as exc:
            raise RuntimeError("StopIteration in model code") from exc

    return call
