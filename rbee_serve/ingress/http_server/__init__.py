"""The ingress's HTTP server: uvicorn's protocol, with bounds on what a client may send, and in which time."""
