from __future__ import annotations

from benchmarks.method import Row, compared, paired
from benchmarks.open_streams import CPU, FAULTS, IDLE, LAG, comparisons

CPU_OF = {IDLE: 10.0, "1 stream": 20.0, "8 streams": 21.0, "500 streams": 24.0, "1 stream again": 22.0}


def test_cpu_is_judged_for_the_most_streams_and_lag_and_faults_for_each_number() -> None:
    rows = [Row(0, 0, variant, CPU, value, 1.0) for variant, value in CPU_OF.items()]
    rows += [Row(0, 0, variant, measure, 7.0, 1.0) for variant in list(CPU_OF)[1:] for measure in (LAG, FAULTS)]
    lines = [(found.measure, found.variant, found.must, *paired(rows, found)) for found in comparisons(rows)]
    assert lines[:3] == [
        (CPU, "1 stream again", None, 1.1),
        (CPU, "8 streams", None, 21 / 21),
        (CPU, "500 streams", 1.25, 24 / 21),
    ]
    assert [line[:3] for line in lines if line[0] == LAG] == [
        (LAG, variant, 50.0) for variant in ("1 stream", "8 streams", "500 streams")
    ]
    faults = next(found for found in comparisons(rows) if found.measure == FAULTS)
    assert (compared(rows, faults) or [])[-1] == "missed"
