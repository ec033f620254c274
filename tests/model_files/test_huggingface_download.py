"""Downloads from a local HTTP server that imitates the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rbee_serve.errors import ConfigurationError, InsufficientResources
from rbee_serve.model_files.huggingface_download import download, files_to_download
from rbee_serve.model_files.model_ref import HubModel
from rbee_serve.state import LoadProgress

pytest.importorskip("huggingface_hub")

MODEL = HubModel("org/name")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 8192,
    "pytorch_model.bin": b"a pickle",
    "README.md": b"text",
}


class Hub(ThreadingHTTPServer):
    """Serves the files of one repository as the Hub does, or fails with `status` and `error` as `X-Error-Code`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.error, self.status = dict(FILES), "", 404
        self.downloads: list[str] = []
        self.claimed_sizes: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        sizes = {name: self.server.claimed_sizes.get(name, len(data)) for name, data in self.server.files.items()}
        if self.server.error:
            self._send(b"{}", self.server.status, {"X-Error-Code": self.server.error, "X-Error-Message": "no"})
        elif path.startswith("/api/models/org/name/tree/"):
            tree = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()]
            self._send(json.dumps(tree).encode())
        elif path.startswith("/api/models/org/name"):
            siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            self._send(json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode())
        else:
            name = path.removeprefix(f"/org/name/resolve/{COMMIT}/")
            data = self.server.files[name]
            if self.command == "GET":
                self.server.downloads.append(name)
            self._send(data, headers={"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name in the base class)
        """Log nothing."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ignored(progress: LoadProgress) -> None:
    """Ignore the progress."""


def test_weights_and_configuration_are_downloaded_and_pickles_are_not(hub: Hub, tmp_path: Path) -> None:
    reports: list[LoadProgress] = []
    folder = download(MODEL, reports.append, hub_cache=tmp_path, endpoint=hub.url)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: FILES[name] for name in ("config.json", "model.safetensors")
    }
    total = len(FILES["model.safetensors"]) + len(FILES["config.json"])
    done = [progress.bytes_done or 0 for progress in reports]
    assert (done[0], max(done), {progress.bytes_total for progress in reports}) == (0, total, {total})
    assert {progress.stage for progress in reports} == {"downloading"}


def test_cached_files_are_not_downloaded_again(hub: Hub, tmp_path: Path) -> None:
    first = download(MODEL, ignored, hub_cache=tmp_path, endpoint=hub.url)
    hub.downloads.clear()
    reports: list[LoadProgress] = []
    assert download(MODEL, reports.append, hub_cache=tmp_path, endpoint=hub.url) == first
    assert hub.downloads == []
    assert reports[0].bytes_done == reports[0].bytes_total


def test_without_the_hub_the_cached_copy_is_used(hub: Hub, tmp_path: Path) -> None:
    first = download(MODEL, ignored, hub_cache=tmp_path, endpoint=hub.url)
    assert download(MODEL, ignored, hub_cache=tmp_path, endpoint="http://127.0.0.1:9") == first


def test_without_the_hub_and_a_cached_copy_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not in the cache and could not be downloaded"):
        download(MODEL, ignored, hub_cache=tmp_path, endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("status", "code", "why"),
    [
        (404, "RepoNotFound", "not on the Hugging Face Hub, or is private"),
        (403, "GatedRepo", "gated; accept its terms"),
        (404, "RevisionNotFound", "has no revision v9"),
        (500, "SomethingElse", "the Hub returned status 500"),
    ],
)
def test_every_error_of_the_hub_says_what_to_do(hub: Hub, tmp_path: Path, status: int, code: str, why: str) -> None:
    hub.status, hub.error = status, code
    with pytest.raises(ConfigurationError, match=why) as caught:
        download(HubModel("org/name", "v9"), ignored, hub_cache=tmp_path, endpoint=hub.url)
    assert "127.0.0.1" not in str(caught.value)


def test_a_model_larger_than_the_free_disk_is_not_downloaded(hub: Hub, tmp_path: Path) -> None:
    hub.claimed_sizes["model.safetensors"] = 10**18
    with pytest.raises(InsufficientResources, match=r"needs 1,000,000,000,000 MB more"):
        download(MODEL, ignored, hub_cache=tmp_path / "not" / "there", endpoint=hub.url)
    assert hub.downloads == []


def test_offline_mode_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigurationError, match="HF_HUB_OFFLINE is set"):
        download(MODEL, ignored, hub_cache=tmp_path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["model.safetensors", "tokenizer.json", "pytorch_model.bin"], ["model.safetensors", "tokenizer.json"]),
        (["model.safetensors", "model.fp16.safetensors"], ["model.safetensors"]),
        (["model.fp16.safetensors"], ["model.fp16.safetensors"]),
        (["model-1.safetensors", "consolidated.safetensors"], ["model-1.safetensors"]),
        (["consolidated.safetensors"], ["consolidated.safetensors"]),
        (
            ["model_index.json", "unet/model.safetensors", "v1-5-pruned.safetensors"],
            ["unet/model.safetensors", "model_index.json"],
        ),
        (["model.Q4_1.gguf", "config.json"], ["model.Q4_1.gguf", "config.json"]),
        (["model.safetensors", "model.gguf"], ["model.safetensors"]),
        (["model.bin", "vocabulary.txt", "README.md"], ["model.bin", "vocabulary.txt"]),
        (["model.safetensors", "model.bin"], ["model.safetensors"]),
    ],
)
def test_duplicate_weights_are_not_downloaded(files: list[str], expected: list[str]) -> None:
    assert files_to_download(MODEL, dict.fromkeys(files, 1)) == expected


@pytest.mark.parametrize(
    ("files", "why"),
    [(["pytorch_model.bin"], "pickles"), (["README.md"], "neither"), (["a.gguf", "b.gguf"], "2 GGUF files")],
)
def test_a_repository_without_weights_to_load_is_refused(files: list[str], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        files_to_download(MODEL, dict.fromkeys(files, 1))
