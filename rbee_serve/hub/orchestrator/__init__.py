"""The callbacks to the orchestrator: ready, heartbeat, load failure."""
