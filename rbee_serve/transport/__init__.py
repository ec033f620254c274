"""Connections between the processes of an application: messages in MessagePack over TCP.

A process learns an `Endpoint` through one Ray call. All later messages go over that connection, because a Ray call
costs both sides some milliseconds of CPU. Both ends of each protocol are in this folder; nothing here imports Ray.

    framing             `FramedConnection`: one end of a connection; lists of messages, one write per frame
    handshake           `Endpoint`, and the mutual proof of its token
    acceptor            `Acceptor`: the listening side
    client_connection   `ClientConnection` and `OnDemand`: the connecting side
    cancellation        whether a `CancelledError` is the current task's own
    request_*           requests from an ingress to a replica, and `ResponseStream`
    state_*             states from replicas to the hub, snapshots from the hub to ingresses
"""
