"""Tests for worker types of any package, without Ray, pytest or a server: `check_worker_type(SPEC)`."""

from rbee_serve.testing.contract import check_worker_type
from rbee_serve.testing.failure import ContractError

__all__ = ["ContractError", "check_worker_type"]
