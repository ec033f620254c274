"""What the application says of its workers over HTTP, as small values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from rbee_serve.supervisor.checks import CheckedConfig

_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True)
class Load:
    """How far a load is; `total` is 0 where nobody knows."""

    stage: str
    done: int = 0
    total: int = 0
    unit: str = ""
    """`bytes`, `layers`, or empty where only the stage is known."""

    @property
    def amount(self) -> str:
        """`61.0 of 134.5 MB`, `12 of 30 layers`, or nothing."""
        if not self.unit:
            return ""
        if self.unit == "layers":
            return f"{self.done} of {self.total} layers" if self.total else f"{self.done} layers"
        power = 0
        while max(self.done, self.total) >= 1000 ** (power + 1) and power < len(_UNITS) - 1:
            power += 1
        done = f"{self.done / 1000**power:.1f}"
        return f"{done} of {self.total / 1000**power:.1f} {_UNITS[power]}" if self.total else f"{done} {_UNITS[power]}"

    @classmethod
    def of(cls, progress: dict[str, Any]) -> Load:
        """From the `progress` of `GET /v1/ready`."""
        stage = str(progress.get("stage", "loading")).replace("_", " ")
        for unit, done, total in (("layers", "layers_loaded", "layers_total"), ("bytes", "bytes_done", "bytes_total")):
            if progress.get(done) is not None:
                return cls(stage, int(progress[done]), int(progress.get(total) or 0), unit)
        return cls(stage)


@dataclass(frozen=True, slots=True)
class WorkerReadiness:
    """One worker in `GET /v1/ready`."""

    id: str
    ready: bool
    state: str
    reason: str = ""
    load: Load | None = None

    @property
    def failed(self) -> bool:
        """Whether the model could not be loaded, or the worker broke."""
        return self.state == "error"


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker in `GET /v1/workers`."""

    id: str
    type: str
    model: str
    device: str
    url: str


class ApplicationClient:
    """Asks the running application. Every method raises `httpx.HTTPError` while it does not answer."""

    def __init__(self, plan: CheckedConfig) -> None:
        token = plan.config.auth.token()
        self._http = httpx.Client(
            base_url=plan.base_url,
            headers={b"Authorization": b"Bearer " + token} if token else None,
            timeout=5.0,
            trust_env=False,  # it is this machine: no proxy
            verify=False,  # noqa: S501 - and its certificate is for the name that others use
        )

    def ready(self) -> tuple[WorkerReadiness, ...]:
        """Every configured worker, in the order of the file."""
        return tuple(
            WorkerReadiness(
                id=worker["id"],
                ready=worker["ready"],
                state=worker["state"],
                reason=worker.get("reason", ""),
                load=Load.of(worker["progress"]) if worker.get("progress") else None,
            )
            for worker in self._get("/v1/ready")["workers"]
        )

    def workers(self) -> tuple[WorkerInfo, ...]:
        """Every configured worker with its model, device and URL."""
        return tuple(
            WorkerInfo(id=w["id"], type=w["type"], model=w["model_id"], device=w["device"], url=w["url"])
            for w in self._get("/v1/workers")["workers"]
        )

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def _get(self, path: str) -> Any:
        response = self._http.get(path)
        if response.status_code not in (200, 503):
            response.raise_for_status()
        try:
            body = response.json()
        except ValueError as exc:
            raise httpx.DecodingError("the answer is not JSON", request=response.request) from exc
        if not isinstance(body, dict) or "workers" not in body:
            raise httpx.DecodingError("the application does not answer yet", request=response.request)
        return body
