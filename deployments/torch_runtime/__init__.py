"""Support for models in PyTorch: devices, threads, CUDA graphs, and sentence-transformers."""
