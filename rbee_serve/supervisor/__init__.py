"""What a person starts: `rbee-serve serve serve_config.yaml`.

    checks ─→ environment ─→ cluster ─→ follow ─→ (signal) ─→ drain
    the file    what Ray       Ray and    load       stop        not ready, wait,
    is right    must find      Serve      progress               shut down
                                          watch

Plain `serve run serve_config.yaml` works too. What needs the supervisor: mistakes told in one sentence before Ray
starts, the settings that count only before it starts, the progress of loads, and a stop that lets requests finish.
Ray is imported inside functions here, so that `rbee-serve check` takes less than a second.
"""
