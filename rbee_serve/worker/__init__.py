"""What an author of a worker type imports."""
