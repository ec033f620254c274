"""For each worker type the code of its own beside the shared code that its contract tests execute, as a table.

    make reuse

Own is all code of the modules that make up the type, executed or not. What a family of types has in common, such as the
vLLM engine of `llm` and `embedding`, was written once for all of them, so each type bears an equal part of it; but the
plan builds the multimodal worker on those for text, pictures and sound, so it bears nothing of what was theirs. Shared
is the code of `rbee_serve` that ran in the ingress, in the hub and in the worker's replica, as
`tests/executed_lines.py` has recorded it. Exits with 1 if a type shares less than its bound, has not fewer lines
of its own than the plan expects, or was not recorded.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deployments.registry import WORKER_TYPES
from scripts.reuse.code_lines import count, count_executed
from scripts.reuse.ownership import owned_modules

ROOT = Path(__file__).resolve().parents[2]

PLAN = {"embedding": (85, 750), "vision": (80, 1000), "audio": (80, 1000), "multimodal": (90, 500)}
"""Percent reused and lines of new code that the plan of rbee's Rust workers expects of a new worker type."""

BOUNDS = {**{name: percent for name, (percent, _) in PLAN.items()}, "echo": 90}
"""Percent that a type must share: what the plan expects. Echo has no model and is held to the plan's highest number."""

LEAST = 80
"""The plan's lowest number: the bound of any other type, also of `llm`, which it takes as given without an estimate."""


BUILT_ON_OTHERS = frozenset({"multimodal"})
"""Types that use what others were written with. The plan counts for them what is new beside those."""


@dataclass(frozen=True)
class Row:
    """Lines of code of one worker type: of its own, its part of what a family of types has in common, and shared by
    all."""

    name: str
    own: int
    family: int
    shared: int

    @property
    def reuse(self) -> float:
        """Percent of the code that is shared by all."""
        return 100 * self.shared / (self.shared + self.own + self.family)

    @property
    def bound(self) -> int:
        """What `reuse` must reach."""
        return BOUNDS.get(self.name.partition("/")[0], LEAST)

    @property
    def too_long(self) -> bool:
        """Whether it has not fewer lines of its own than the plan expects. Each task of a type is held to that."""
        _, most = PLAN.get(self.name.partition("/")[0], (None, None))
        return most is not None and self.own >= most

    @property
    def verdict(self) -> str:
        """What is to be said of it."""
        if not self.shared:
            return "NOT RECORDED"
        return "kept" if self.reuse >= self.bound and not self.too_long else "BROKEN"


def rows(
    root: Path, worker_types: Mapping[str, str], executed: Mapping[str, Mapping[str, Collection[int]]]
) -> list[Row]:
    """A row for each worker type. `executed` are the numbers of its lines by type and path below `root`."""
    owned = owned_modules(root, worker_types)
    owners = Counter(module for name, modules in owned.items() if name not in BUILT_ON_OTHERS for module in modules)
    found = []
    for name, modules in owned.items():
        lines = {module: count(path.read_text()) for module, path in modules.items()}
        if name in BUILT_ON_OTHERS:
            own, family = sum(number for module, number in lines.items() if not owners[module]), 0.0
        else:
            own = sum(number for module, number in lines.items() if owners[module] == 1)
            family = sum(number / owners[module] for module, number in lines.items() if owners[module] > 1)
        shared = sum(
            count_executed((root / path).read_text(), traced) for path, traced in executed.get(name, {}).items()
        )
        found.append(Row(name, own, round(family), shared))
    return found


def table(found: Collection[Row]) -> Iterator[str]:
    """The lines of the table."""
    yield "lines of code      own  family  shared    reuse  at least    the plan expected"
    for row in found:
        percent, own = PLAN.get(row.name.partition("/")[0], (None, None))
        plan = f"{percent} %, {own} own" if percent else "nothing"
        yield (
            f"{row.name:<16} {row.own:>5} {row.family:>7} {row.shared:>7}   {row.reuse:4.1f} %      {row.bound} %"
            f"    {plan:<17}   {row.verdict}"
        )


def main(recorded: Path) -> int:
    """Prints the table; returns the exit status."""
    found = rows(ROOT, WORKER_TYPES, json.loads(recorded.read_text()))
    print("\n".join(table(found)))
    return 0 if all(row.verdict == "kept" for row in found) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
