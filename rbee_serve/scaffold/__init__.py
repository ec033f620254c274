"""Writes the files of a new worker type."""
