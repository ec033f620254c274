"""What engines on PyTorch share."""
