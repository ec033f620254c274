"""Code of a worker replica's process, around the model."""
