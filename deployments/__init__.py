"""What is deployed: the registry, the application and one module per worker type."""
