"""A typed HTTP client of a running rbee-serve, in two forms.

    with Client("http://127.0.0.1:8000") as client:
        with client.stream("llm", prompt="Once", max_tokens=32) as events:
            for event in events:
                ...
        print(client.infer("llm", prompt="Once")["text"])

`AsyncClient` has the same methods as coroutines. An error of the server is raised as the `WorkerError` of its code,
with its violations; a server that cannot be reached or breaks off a stream is `WorkerLost`, one that is silent for too
long `InferenceTimeout`, a token that it refuses `Unauthorized`.
"""

from rbee_serve.client.async_client import AsyncClient
from rbee_serve.client.calls import Unauthorized
from rbee_serve.client.client import Client
from rbee_serve.client.results import Health, Readiness, ReplicaInfo, WorkerDescription, WorkerInfo, WorkerReadiness

__all__ = [
    "AsyncClient",
    "Client",
    "Health",
    "Readiness",
    "ReplicaInfo",
    "Unauthorized",
    "WorkerDescription",
    "WorkerInfo",
    "WorkerReadiness",
]
