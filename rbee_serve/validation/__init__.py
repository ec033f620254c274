"""Validation of requests: parsing, limits, and a report of every violation."""
