"""A soak: mixed load, bad requests, disconnects, killed processes and an orchestrator that misbehaves, all at once."""
