"""Our application on a Ray cluster of two nodes on this machine: the ingress on the one, the workers on the other.

The first node offers no cores, so ingress and hub, which need none, start there before the second node exists; the
workers need cores and wait for it. To Ray and to rbee-serve the nodes are two machines: they have ids and addresses of
their own. Each SIGUSR1 adds another node.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from rbee_serve.ray_settings import set_missing

START_S = 180.0
CORES = 64
FAR = "127.0.0.2"
"""The address of all nodes except the first, which has the machine's own."""


def main() -> None:
    """Serve a `serve_config.yaml` until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    document = yaml.safe_load(parser.parse_args().config.read_text())
    set_missing(os.environ)
    serve_on_two_nodes(document["applications"][0], **document["http_options"])


def serve_on_two_nodes(application: dict[str, Any], host: str, port: int) -> None:
    """Start the cluster and the application, and end both on SIGTERM."""
    import ray
    from ray import serve
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray.cluster_utils import Cluster
    from ray.serve.config import HTTPOptions, ProxyLocation

    from deployments import app
    from rbee_serve.ingress.listener import Address

    ensure_token_if_auth_enabled(None, create_token_if_missing=True)
    nodes: queue.SimpleQueue[None] = queue.SimpleQueue()
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGUSR1, lambda number, frame: nodes.put(None))
    try:
        serve.start(proxy_location=ProxyLocation.Disabled)
        built = app.application(application["args"], HTTPOptions(host=host, port=port), Address(host, port))
        serve.run_many([serve.RunTarget(built, application["name"])], wait_for_applications_running=False)
        _wait_until_it_answers(f"http://{host}:{port}/health")
        while True:
            cluster.add_node(num_cpus=CORES, node_ip_address=FAR)
            nodes.get()
    except KeyboardInterrupt:
        serve.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()


def _wait_until_it_answers(url: str) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            httpx.get(url).raise_for_status()
            return
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


if __name__ == "__main__":
    main()
