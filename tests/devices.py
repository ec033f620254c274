"""The device for models in tests without Ray: the CPU, or the GPU if `RBEE_SERVE_TEST_DEVICE=cuda`."""

from __future__ import annotations

import os

from rbee_serve.worker.spec import Device

NAME = os.environ.get("RBEE_SERVE_TEST_DEVICE", "cpu")
"""torch's name of the device."""
DEVICE = Device(NAME)
ON_GPU = NAME == "cuda"
