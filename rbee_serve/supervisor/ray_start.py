"""Two changes of how Ray starts that it has no settings for. They patch private functions of the pinned version while
it starts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

RAY_START_S = 180.0
"""How long Ray's processes may take to find each other."""


@contextmanager
def patched_ray_start() -> Iterator[None]:
    """A longer timeout, and no unused daemons, for a `ray.init` inside."""
    with _longer_start_timeout(), _without_unused_daemons():
        yield


@contextmanager
def _longer_start_timeout() -> Iterator[None]:
    """Ray allows itself 30 s to start, which is too short on a slow machine: the first start after an installation, or
    two busy cores. So the lookup that would fail is repeated until it succeeds."""
    from ray._private import services

    get_node = services.get_node

    def wait_for_node(*args: Any, **kwargs: Any) -> Any:
        deadline = time.monotonic() + RAY_START_S
        while True:
            try:
                return get_node(*args, **kwargs)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    services.get_node = wait_for_node
    try:
        yield
    finally:
        services.get_node = get_node


@contextmanager
def _without_unused_daemons() -> Iterator[None]:
    """Without Ray's autoscaler, its log monitor (`log_folder` does its work), and, where usage reports are off, the
    server behind the dashboard, which starts even if the dashboard is disabled."""
    from ray._private import ray_constants
    from ray._private.node import Node

    def no_dashboard(node: Any, **kwargs: Any) -> None:
        """Other processes look up the dashboard's address every second until there is one; nothing listens at this one,
        as nothing did before."""
        name, namespace = ray_constants.DASHBOARD_ADDRESS.encode(), ray_constants.KV_NAMESPACE_DASHBOARD
        node.get_gcs_client().internal_kv_put(name, b"127.0.0.1:9", True, namespace)

    names = ("start_monitor", "start_log_monitor", "start_api_server")
    originals = {name: getattr(Node, name) for name in names}
    Node.start_monitor = Node.start_log_monitor = lambda node: None
    if os.environ.get("RAY_USAGE_STATS_ENABLED") == "0":
        Node.start_api_server = no_dashboard
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(Node, name, original)
