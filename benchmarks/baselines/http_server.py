"""One small ASGI application on each HTTP server that can run it: one process, and uvloop where there is a choice."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from benchmarks.baselines.small_app import app

APP = "benchmarks.baselines.small_app:app"


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--server", choices=sorted(SERVERS), required=True)
    options = parser.parse_args()
    SERVERS[options.server](options.port)


def _ours(port: int) -> None:
    import uvloop

    from rbee_serve.ingress.listener import Address, Listener

    async def serve() -> None:
        listener = Listener(app, Address("127.0.0.1", port))
        await asyncio.Event().wait()
        await listener.close(1)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


def _uvicorn(port: int, parser: Any) -> None:
    import uvicorn

    uvicorn.run(
        app, port=port, http=parser, loop="uvloop", ws="none", lifespan="off", access_log=False, log_level="error"
    )


def _granian(port: int) -> None:
    from granian import Granian
    from granian.constants import Interfaces

    Granian(APP, port=port, interface=Interfaces.ASGINL, websockets=False, log_enabled=False).serve()


def _hypercorn(port: int) -> None:
    import hypercorn.asyncio
    import uvloop
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(hypercorn.asyncio.serve(app, config))


def _daphne(port: int) -> None:
    from daphne.server import Server

    Server(app, [f"tcp:port={port}:interface=127.0.0.1"], signal_handlers=False).run()


SERVERS = {
    "ours": _ours,
    "uvicorn-httptools": lambda port: _uvicorn(port, "httptools"),
    "uvicorn-h11": lambda port: _uvicorn(port, "h11"),
    "granian": _granian,
    "hypercorn": _hypercorn,
    "daphne": _daphne,
}

if __name__ == "__main__":
    main()
