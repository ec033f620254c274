"""The HTTP client."""

from rbee_serve.client.client import AsyncClient, Client, Unauthorized

__all__ = ["AsyncClient", "Client", "Unauthorized"]
