"""Untrusted audio and image files are decoded here, in processes of their own."""
