"""The deployed application: its builder, the registry of worker types, and a module or folder for each worker type."""
