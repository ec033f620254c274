"""Where tests without Ray load models: on the CPU, or on the GPU where `RBEE_SERVE_TEST_DEVICE=cuda`."""

from __future__ import annotations

import os

from rbee_serve.worker.spec import Device

NAME = os.environ.get("RBEE_SERVE_TEST_DEVICE", "cpu")
"""As torch calls it."""
DEVICE = Device(NAME)
ON_GPU = NAME == "cuda"
