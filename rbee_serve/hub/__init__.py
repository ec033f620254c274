"""Runs in the hub: the state of all workers, the ready callback and the heartbeats."""
