"""The bounds of requests, and every violation of them."""
