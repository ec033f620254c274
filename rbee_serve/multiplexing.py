"""What crosses the border between an ingress and the replicas of a worker, and the terms of it.

    ingress (one `Channel` for each worker)                      replica (`Channels`)

    respond(channel, call, requests)      ──────────────→        a task for each request
        first message                     ←──────────────        an acknowledgement: the number of the call that carries
        further messages                  ←── [part, …] ─        only on that call: what all requests have to say
    control(channel, left, read)          ──────────────→        these are no longer wanted; of those so much was read

A message costs the same whatever it holds, so one message holds what several requests have to say. The first call of a
channel to a replica carries, for as long as any request of that channel is open there; the other calls stay open until
their own requests are done, without a message, so that Ray Serve counts them and they can be cancelled.
"""

from __future__ import annotations

SentRequest = tuple[int, bytes, str]
"""A request on its way: its number in the channel, its pickled fields, its correlation id."""

Fragment = tuple[bytes, bool] | tuple[bytes, bool, str]
"""Of an answer: SSE frames and whether the end is among them; or one document, True, and its content type."""

Part = tuple[int, bytes, bool] | tuple[int, bytes, bool, str]
"""A fragment, with the number of its request before it."""

WINDOW_BYTES = 1024 * 1024
"""So far a request's client may be behind before its replica waits for it. Both sides keep that much at most, beside
the last event."""
