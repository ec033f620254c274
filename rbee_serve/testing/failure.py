"""What a broken rule of the contract raises."""

from __future__ import annotations

from typing import Any, NoReturn

from rbee_serve.worker.spec import WorkerSpec


class ContractError(AssertionError):
    """A worker type breaks the contract. The message names the type, the rule and the remedy."""


def fail(spec: WorkerSpec[Any], sentence: str, cause: BaseException | None = None) -> NoReturn:
    """Raise `ContractError` about a worker type."""
    raise ContractError(f"worker type {spec.full_name}: {sentence}") from cause
