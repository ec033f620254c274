"""What engines on vLLM share, and everything that changes vLLM's own code."""
