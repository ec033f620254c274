"""The command `rbee-serve`: `rbee-serve serve serve_config.yaml`.

    checks ─→ environment ─→ cluster ─→ monitor ─→ (signal) ─→ drain
    validate  variables      Ray and    progress    stop        not ready, wait for
    the file  for Ray        Serve      of loads                requests, shut down

Plain `serve run serve_config.yaml` works too. The supervisor adds: configuration errors in one sentence before Ray
starts, the settings that must be set before it starts, the progress of loads, and a stop that drains requests.
Ray is imported inside functions here, so that `rbee-serve check` takes less than a second.
"""
