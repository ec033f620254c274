"""What replicas tell the hub of themselves, and the hub the ingresses.

    replica                          hub (`StateServer`)                    ingress

    reach()          ── Ray ──→      its `Endpoint`       ←── Ray ──          reach()
    Hello(key)       ══ TCP ══→                        ←══ TCP ══          Hello(key)
    Push(state)      ═════════→      the roster
        Taken        ←═════════
                                                       ←═════════          Watch(version, longest_s)
                                     when it is newer  ═════════→          News(snapshot)

Whoever connects numbers what it says, and the answer has the number.
"""

from __future__ import annotations

import msgspec

from rbee_serve.state import ReplicaState, Snapshot
from rbee_serve.transport.acceptor import Hello


class StateUpdate(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """How a replica is, in its `sequence`-th push."""

    number: int
    state: ReplicaState
    sequence: int


class StateAck(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The hub has it."""

    number: int


class Watch(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The first snapshot newer than `version` is wanted, or the present one after `longest_s` seconds."""

    number: int
    version: int
    longest_s: float


class SnapshotUpdate(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """All workers at this moment."""

    number: int
    snapshot: Snapshot


ToHub = Hello | StateUpdate | Watch
FromHub = StateAck | SnapshotUpdate
