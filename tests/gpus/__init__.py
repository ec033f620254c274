"""GPUs for tests on a machine without one: a driver that reports what a test gives it (`fake_nvml`)."""
