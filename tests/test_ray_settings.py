"""What Ray must find in its environment, and what is said if it did not."""

from __future__ import annotations

import pytest

from rbee_serve.ray_settings import SETTINGS, warn_of_missing


def test_settings_for_speed_that_are_missing_are_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_missing({"RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.1"})
    [record] = caplog.records
    said = record.getMessage()
    assert record.levelname == "WARNING"
    assert "\n" not in said
    assert "rbee-serve serve FILE" in said
    assert "RAY_SERVE_THROUGHPUT_OPTIMIZED=1 RAY_SERVE_ENABLE_DIRECT_INGRESS=0" in said
    assert "RAY_SERVE_CONTROL_LOOP_INTERVAL_S" not in said
    assert "RAY_AUTH_MODE" not in said


def test_nothing_is_told_where_all_are_set(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_missing({setting.name: "whatever" for setting in SETTINGS if setting.speed})
    assert caplog.records == []
