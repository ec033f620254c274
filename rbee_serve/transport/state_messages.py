"""Messages about the state of workers, between the hub and the replicas and ingresses.

    replica                              hub (`StateServer`)                        ingress

    reach()              ── Ray ──→      its `Endpoint`       ←── Ray ──            reach()
    handshake            ←═ TCP ══→                           ←══ TCP ═→            handshake
    StateUpdate(state)   ═════════→      `ReplicaRegistry`
        StateAck         ←═════════
                                                              ←═════════            Watch(version, max_wait_s)
                                         when it is newer     ═════════→            SnapshotUpdate(snapshot)

The connecting side numbers its messages with stream ids; the reply has the id of its message.
"""

from __future__ import annotations

import msgspec

from rbee_serve.state import ReplicaState, Snapshot


class StateUpdate(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The state of a replica, in its `sequence`-th update."""

    stream_id: int
    state: ReplicaState
    sequence: int


class StateAck(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The hub has the update."""

    stream_id: int


class Watch(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Requests the first snapshot newer than `version`, or the present one after `max_wait_s` seconds."""

    stream_id: int
    version: int
    max_wait_s: float


class SnapshotUpdate(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """All workers at this moment."""

    stream_id: int
    snapshot: Snapshot


ToHub = StateUpdate | Watch
FromHub = StateAck | SnapshotUpdate
