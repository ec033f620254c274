"""The HTTP servers that can run the ingress: what a request and an event cost on each, and what each bounds by itself.

    python -m benchmarks.http_servers --environment VENV --save benchmarks/raw/http_servers.csv

The same small ASGI application on each of them, in turns. `VENV` has the servers that are not ours; a missing one is
skipped with a line. Servers that run no ASGI application are left out: robyn and blacksheep are frameworks with their
own handlers, cheroot and waitress run WSGI in threads, so a stream would hold a thread. socketify loses requests of 32
clients, so nothing can be measured.
"""

from __future__ import annotations

import argparse
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from benchmarks.baselines.http_server import SERVERS
from benchmarks.echo import load_options, measure
from benchmarks.load import LoadError, StreamReader
from benchmarks.method import (
    CONTROL,
    Comparison,
    Row,
    comparison_table,
    measures,
    run_blocks,
    save,
    table,
    variant_table,
)
from benchmarks.servers import Server, baseline
from benchmarks.versions import cpu_rows

OURS, BASE = "ours", "uvicorn-httptools"
SLOW_S = 12.0
"""Seconds for which headers are left without an end."""
HEADER_MB = 40


def main() -> None:
    """Measure and print."""
    options = _options()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reader = StreamReader()
        stack.callback(reader.close)
        servers = dict(_started(stack, folder, options))
        bounds = [[name, *_bounds(server)] for name, server in servers.items()]
        if BASE in servers:
            servers[f"{BASE}{CONTROL}"] = servers[BASE]
        turns = {name: partial(measure, server, server.target, reader, options) for name, server in servers.items()}
        rows = run_blocks(turns, options.blocks)
    headings = ["server", "a header of 1 MB", f"memory for {HEADER_MB} MB of headers", f"headers open for {SLOW_S:g} s"]
    print(f"\n{table([*headings, 'a stream to HTTP/1.0'], bounds)}")
    print(f"\n{variant_table(rows)}\n\n{comparison_table(cpu_rows(rows), _comparisons(rows))}")
    if options.save:
        save(rows, options.save)


def _started(stack: ExitStack, folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, Server]]:
    for name in options.servers:
        own = name == OURS or name.startswith("uvicorn")
        try:
            module, arguments = "http_server", ["--server", name]
            where = folder / name
            where.mkdir()
            environment = None if own else options.environment
            probe = {"prompt": "hello", "stream": False}
            yield name, baseline(stack, where, module, probe, arguments, environment=environment)
        except LoadError as exc:
            print(f"{name} is skipped: {str(exc).strip().splitlines()[-1]}")


def _bounds(server: Server) -> Sequence[str]:
    """What the server does with a large header, with endless headers, with slow ones, and with HTTP/1.0."""
    with server.awake():
        get, port = b"POST /v1/inference HTTP/1.1\r\nHost: x\r\n", server.target.port
        large = _reply(port, get + b"X: " + b"x" * 1024**2 + b"\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        before = sum(server.tree.memory_bytes().values())
        with socket.create_connection(("127.0.0.1", port), 5) as endless:
            with suppress(OSError):
                endless.sendall(get)
                for _ in range(HEADER_MB):
                    endless.sendall((b"X: " + b"x" * 1019 + b"\r\n") * 1024)
            time.sleep(1)
            grown = sum(server.tree.memory_bytes().values()) - before
        slow = _reply(port, get + b"X: ", SLOW_S)
        old = _reply(port, b'POST /v1/inference HTTP/1.0\r\nContent-Length: 13\r\n\r\n{"repeat": 1}')
        chunked = b"transfer-encoding: chunked" in old.lower()
        return [
            _status(large),
            f"{grown / 1e6:.0f} MB",
            _status(slow) if slow != b"open" else "open",
            "chunked" if chunked else _status(old),
        ]


def _reply(port: int, request: bytes, within_s: float = 5.0) -> bytes:
    """The response until the connection is closed; `open` if nothing came and it is open all the same."""
    received, deadline = b"", time.monotonic() + within_s
    with socket.create_connection(("127.0.0.1", port), within_s) as connection:
        try:
            connection.sendall(request)
            while (left := deadline - time.monotonic()) > 0:
                connection.settimeout(left)
                piece = connection.recv(65536)
                if not piece:
                    return received
                received += piece
        except TimeoutError:
            return received or b"open"
        except OSError:
            return received
    return received or b"open"


def _status(response: bytes) -> str:
    return response.split(b" ", 2)[1].decode("ascii", "replace") if b" " in response else "closed"


def _comparisons(rows: Sequence[Row]) -> Iterator[Comparison]:
    names = list(dict.fromkeys(row.variant for row in rows))
    for measure_name in measures(rows):
        if measure_name.startswith(("requests/s", "events/s")):
            for name in names:
                if name != BASE:
                    yield Comparison(measure_name, name, BASE, kind="ratio at most")


def _options() -> argparse.Namespace:
    parser = load_options(__doc__, seconds=3.0, idle=0.0)
    parser.add_argument("--environment", type=Path, help="a virtual environment with the servers that are not ours")
    parser.add_argument("--servers", nargs="+", choices=sorted(SERVERS), default=list(SERVERS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
