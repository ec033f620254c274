"""The ingress process: HTTP in, HTTP out. It imports neither torch nor vllm nor transformers."""
