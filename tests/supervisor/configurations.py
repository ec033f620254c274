"""`serve_config.yaml` files for tests."""

from __future__ import annotations

from pathlib import Path

ECHO = """\
http_options:
  host: 127.0.0.1
  port: 8000
applications:
  - name: rbee
    route_prefix: /
    import_path: deployments.app:build_app
    args:
      workers:
        - id: echo-0
          type: echo
          cpus: 0
"""


def written(folder: Path, text: str) -> Path:
    """The text as a file."""
    path = folder / "serve_config.yaml"
    path.write_text(text)
    return path


def changed(folder: Path, old: str, new: str) -> Path:
    """The echo configuration with one thing replaced."""
    assert ECHO.count(old) == 1
    return written(folder, ECHO.replace(old, new))
