"""Tests of `rbee-serve gpu-check`."""
