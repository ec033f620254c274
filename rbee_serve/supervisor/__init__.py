"""Runs around the application: checks, starts, follows and drains it."""
