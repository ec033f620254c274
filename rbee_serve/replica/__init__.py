"""Runs in each worker replica, beside the model."""
