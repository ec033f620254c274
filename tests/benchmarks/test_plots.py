from __future__ import annotations

from pathlib import Path

from benchmarks.method import Row
from benchmarks.plots import Plot, draw, series

PLOT = Plot("echo", "Echo", "echo", "requests/s, {} clients", "one request, ms, {} clients")
ROWS = [
    Row(block, 0, variant, measure, value * clients + block, 1.0)
    for block in range(2)
    for variant, value in {"rbee-serve": 10.0, "rbee-serve again": 11.0, "uvicorn": 20.0}.items()
    for clients in (32, 1)
    for measure in (f"requests/s, {clients} clients", f"one request, ms, {clients} clients")
]


def test_readings_are_in_the_order_of_the_clients_and_the_control_is_left_out() -> None:
    assert series(ROWS, PLOT.throughput) == {
        "rbee-serve": {1: [10.0, 11.0], 32: [320.0, 321.0]},
        "uvicorn": {1: [20.0, 21.0], 32: [640.0, 641.0]},
    }
    assert list(series(ROWS, PLOT.throughput)["uvicorn"]) == [1, 32]
    assert series(ROWS, "events/s, {} clients") == {}


def test_the_same_rows_give_the_same_plot(tmp_path: Path) -> None:
    for name in ("first.svg", "second.svg"):
        draw(PLOT, ROWS, tmp_path / name)
    first, second = (tmp_path / name for name in ("first.svg", "second.svg"))
    assert first.read_bytes() == second.read_bytes()
    assert "rbee-serve" in first.read_text()
    assert first.stat().st_size < 30_000
