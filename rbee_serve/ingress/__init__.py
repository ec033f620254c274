"""Runs in the ingress process: HTTP in, HTTP out. Imports neither torch nor vllm nor transformers."""
