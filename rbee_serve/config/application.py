"""Everything under `args:`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from rbee_serve.config.auth import AuthConfig
from rbee_serve.config.base import ConfigModel
from rbee_serve.config.cors import CorsConfig, normal_origin
from rbee_serve.config.limits import LimitsConfig
from rbee_serve.config.orchestrator import OrchestratorConfig
from rbee_serve.config.sentences import EXPECTED
from rbee_serve.config.tls import TlsConfig
from rbee_serve.config.worker import WorkerConfig

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


class ApplicationConfig(ConfigModel):
    """Everything under `args:` of the application."""

    workers: Annotated[list[WorkerConfig], Field(min_length=1)]
    """The workers. Each becomes a deployment."""
    orchestrator: OrchestratorConfig | None = None
    """The orchestrator to notify; none if left out."""
    auth: AuthConfig = AuthConfig()
    """Who may send requests."""
    cors: CorsConfig = CorsConfig()
    """Web pages of other origins that may use the server."""
    limits: LimitsConfig = LimitsConfig()
    """Limits of the ingress for one request and for its connections."""
    tls: TlsConfig | None = None
    """The certificate of the ingress's own listener; plain HTTP if left out."""
    public_url: (
        Annotated[
            str, Field(pattern=r"^https?://[^\s/]+$", json_schema_extra={EXPECTED: "a URL such as http://box:8000"})
        ]
        | None
    ) = None
    """How others reach this server, such as `http://box:8000`. From `http_options` if left out."""
    ingress_replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of ingress replicas."""

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, url: str | None) -> str | None:
        if url is not None and normal_origin(url) is None:
            raise ValueError(
                "must be a scheme, a host and a port if it is not the scheme's own, such as http://box:8000"
            )
        return url

    @model_validator(mode="after")
    def _check_ids(self) -> Self:
        ids = [worker.id for worker in self.workers]
        doubled = sorted({worker_id for worker_id in ids if ids.count(worker_id) > 1})
        if doubled:
            raise ValueError(f"workers: the id {', '.join(doubled)} is given more than once")
        if reserved := {"ingress", "hub"}.intersection(ids):
            raise ValueError(f"workers: the id {', '.join(sorted(reserved))} is taken by the application itself")
        return self

    def worker(self, worker_id: str) -> WorkerConfig | None:
        """The worker of that id."""
        return next((worker for worker in self.workers if worker.id == worker_id), None)

    def warnings(self) -> list[str]:
        """What an operator should know although it is allowed, a sentence each."""
        return [
            *(self.orchestrator.warnings() if self.orchestrator else []),
            *(warning for worker in self.workers for warning in worker.warnings()),
        ]
