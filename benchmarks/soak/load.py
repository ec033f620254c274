"""Clients of all kinds at once, and a record of what each of their requests came to."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.soak.checks import REFUSED, Outcome, judge
from benchmarks.soak.faults import Faults
from benchmarks.soak.http import Conduct, exchange
from benchmarks.soak.samples import Sample, bad, failing, good
from benchmarks.soak.server import Server, Worker

USERS = 6
PAUSE_S = (0.0, 1.5)
"""Between two requests of a user."""
UNANSWERED_S = 10.0
"""How long after its deadline a request may still be answered."""
SLOW_READ_S = 60.0
"""How long a slow reader takes for the longest stream."""
MAX_SHOWN = 40
"""Faults that are kept with their text."""
SLOW_WORKERS = frozenset({"vision/generate", "audio/generate", "audio/transcribe", "multimodal"})
"""Types that get fewer requests: two cores are busy for seconds with one of them."""
MAX_REFUSED = 0.05
"""The largest part of the good requests that may be refused because the queue is full."""


@dataclass(slots=True)
class Record:
    """Requests by worker and outcome, and the faults among them."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    conducts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    fault_count: int = 0
    unanswered: int = 0
    outside_grammar: int = 0
    good: int = 0
    refused: int = 0

    def add(self, sample: Sample, conduct: Conduct, outcome: Outcome, minute: float) -> None:
        """Count a request."""
        self.outcomes[sample.worker, outcome.name] += 1
        self.conducts[conduct.name] += 1
        self.kinds[sample.kind] += 1
        self.good += sample.is_good
        self.refused += outcome.name.endswith(REFUSED)
        self.unanswered += outcome.name == "unanswered"
        self.outside_grammar += outcome.grammar
        if outcome.fault is not None:
            self.fault_count += 1
            if len(self.faults) < MAX_SHOWN:
                self.faults.append(
                    f"minute {minute:.1f}, {sample.worker}, {sample.kind}, {conduct.name}: {outcome.fault}"
                )

    @property
    def requests(self) -> int:
        """All of them."""
        return self.outcomes.total()


async def use(server: Server, faults: Faults, record: Record, seed: str, stop: asyncio.Event, began: float) -> None:
    """One user, who sends random requests until `stop`."""
    rng = random.Random(seed)
    weights = [0.4 if worker.kind in SLOW_WORKERS else 1.0 for worker in server.workers]
    while not stop.is_set():
        [worker] = rng.choices(server.workers, weights)
        sample, conduct = _sample(rng, server.port, worker), _conduct(rng)
        sent_at = time.monotonic()
        timeout_s = sample.deadline_s + UNANSWERED_S + (SLOW_READ_S if conduct.slow_reader else 0)
        response = await exchange(server.port, sample.request, timeout_s, conduct)
        ended_at = time.monotonic()
        await asyncio.sleep(rng.uniform(*PAUSE_S))  # a fault may be noted after the first answer that it causes
        disturbed = faults.disturbs(worker, sent_at, ended_at)
        cut = faults.cuts(sent_at, ended_at)
        outcome = judge(sample, conduct, response, disturbed, cut, worker.outputs)
        record.add(sample, conduct, outcome, (sent_at - began) / 60)


async def check_all(server: Server, record: Record, faults: Faults, began: float) -> None:
    """One good request to each worker, which must succeed."""
    rng = random.Random(1)
    for worker in server.workers:
        sample = good(rng, server.port, worker.id, worker.kind)
        while sample.deadline_s < 2:
            sample = good(rng, server.port, worker.id, worker.kind)
        response = await exchange(server.port, sample.request, sample.deadline_s + UNANSWERED_S)
        outcome = judge(sample, Conduct(), response, False, False, worker.outputs)
        record.add(sample, Conduct(), outcome, (time.monotonic() - began) / 60)


def totals(record: Record) -> Sequence[Sequence[str]]:
    """A row for each worker and outcome."""
    return [[worker, outcome, str(count)] for (worker, outcome), count in sorted(record.outcomes.items())]


def _sample(rng: random.Random, port: int, worker: Worker) -> Sample:
    draw = rng.random()
    if draw < 0.12:
        return bad(rng, port, worker.id, worker.kind)
    if draw < 0.25 and worker.kind == "echo":
        return failing(rng, port, worker.id)
    return good(rng, port, worker.id, worker.kind)


def _conduct(rng: random.Random) -> Conduct:
    draw = rng.random()
    if draw < 0.70:
        return Conduct()
    return rng.choice(
        [
            Conduct("leaves within its request", send_bytes=rng.randint(1, 400)),
            Conduct("leaves after its request", leave_after_bytes=0),
            Conduct("leaves at the first byte", leave_after_bytes=1),
            Conduct("leaves within the response", leave_after_bytes=rng.randint(200, 20_000)),
            Conduct("reads slowly", slow_reader=True),
            Conduct("sends slowly", pieces=rng.randint(2, 8)),
        ]
    )
