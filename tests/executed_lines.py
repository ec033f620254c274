"""Records which lines of the library run while the contract tests of each worker type do; `make reuse` counts them.

    pytest -p tests.executed_lines tests/served/test_worker_contract.py

Ray calls `trace` in every process that it starts. What a worker starts by itself, such as an engine of vLLM, is not
traced. The contract tests run alone, so a worker has only loaded its model and answered them when it is asked what it
ran.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Ray's processes import this module too, and need not wait for pytest
    import pytest
    from coverage import Coverage

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "rbee_serve"
RECORD = ROOT / ".executed_lines.json"
"""Numbers of the executed lines by worker type and path."""

SETUP_HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""By which Ray's processes know what to call first (`ray._private.ray_constants`). They inherit the environment."""

Lines = dict[str, list[int]]
_coverage: Coverage | None = None


def trace() -> None:
    """Trace the library in this process from its first import on, so that Ray's own imports are not slowed."""
    sys.meta_path.insert(0, _Start())


class _Start(MetaPathFinder):
    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        global _coverage
        if fullname == LIBRARY:
            sys.meta_path.remove(self)
            from coverage import Coverage

            _coverage = Coverage(data_file=None, include=[f"{ROOT / LIBRARY}/*"], config_file=False)
            _coverage.start()


def stop(_: Any) -> Lines:
    """Runs in an actor: end the tracing and tell which lines it saw, by path."""
    if _coverage is None:
        return {}
    _coverage.stop()
    data = _coverage.get_data()
    return {str(Path(path).relative_to(ROOT)): sorted(data.lines(path) or ()) for path in data.measured_files()}


def pytest_configure() -> None:
    """Forget an earlier record."""
    RECORD.unlink(missing_ok=True)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have Ray's processes traced if there is a reason: it slows them."""
    if any(map(_worker_type, session.items)):
        os.environ[SETUP_HOOK] = f"{__name__}.{trace.__name__}"


_recorded: list[str] = []


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """After the last contract test write down what was executed, unless something has failed."""
    name = _worker_type(item)
    if name is None:
        return
    if name not in _recorded:
        _recorded.append(name)
    if nextitem is None or _worker_type(nextitem) is None:
        os.environ.pop(SETUP_HOOK, None)
        if not item.session.testsfailed:
            RECORD.write_text(json.dumps(_executed(_recorded)))


def _worker_type(item: pytest.Item) -> str | None:
    """The worker type, if the test is one of its contract tests."""
    if item.path.name != "test_worker_contract.py":
        return None
    return str(item.callspec.params["name"])  # type: ignore[attr-defined]


def _executed(worker_types: list[str]) -> dict[str, Lines]:
    """The lines of each worker's own replica and those of the ingress and the hub, which serve all."""
    import ray
    from ray.util import list_named_actors

    answers: defaultdict[str, list[Any]] = defaultdict(list)
    for actor in list_named_actors(all_namespaces=True):
        kind, _, replica = actor["name"].partition("::")
        if kind == "SERVE_REPLICA":  # SERVE_REPLICA::application#deployment#number
            handle = ray.get_actor(actor["name"], actor["namespace"])
            answers[replica.split("#")[1]].append(handle.__ray_call__.remote(stop))
    return {
        name: _union(
            ray.get([*answers[f"{name.replace('/', '-')}-0"], *answers["ingress"], *answers["hub"]], timeout=60)
        )
        for name in worker_types
    }


def _union(parts: list[Lines]) -> Lines:
    union: defaultdict[str, set[int]] = defaultdict(set)
    for part in parts:
        for path, lines in part.items():
            union[path].update(lines)
    return {path: sorted(lines) for path, lines in sorted(union.items())}
