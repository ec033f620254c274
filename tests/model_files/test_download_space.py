"""Downloads that run at the same time, and a disk that is large enough for one of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rbee_serve.errors import InsufficientResources
from rbee_serve.model_files.download_space import FOLDER, reserved_space
from rbee_serve.model_files.huggingface_download import download
from rbee_serve.model_files.model_ref import HubModel
from rbee_serve.state import LoadProgress
from tests.model_files.stub_hub import Hub

MB = 10**6


@pytest.fixture(autouse=True)
def _disk_of_1000_mb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000 * MB))


def test_a_download_counts_what_another_one_has_still_to_fetch(tmp_path: Path) -> None:
    with reserved_space(tmp_path, "org/first", 600 * MB) as still_to_fetch:
        with (
            pytest.raises(
                InsufficientResources,
                match=r"hf:org/second needs 500 MB more, but .* only 1,000 MB free, and other downloads need 600 MB of",
            ),
            reserved_space(tmp_path, "org/second", 500 * MB),
        ):
            pass
        still_to_fetch(499 * MB)
        with reserved_space(tmp_path, "org/second", 500 * MB), reserved_space(tmp_path, "org/third", 1 * MB):
            pass
    with reserved_space(tmp_path, "org/second", 1000 * MB):
        pass
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["lock"]


def test_replicas_that_download_the_same_model_need_its_space_once(tmp_path: Path) -> None:
    with (
        reserved_space(tmp_path, "org/first", 900 * MB) as still_to_fetch,
        reserved_space(tmp_path, "org/first", 900 * MB),
    ):
        still_to_fetch(300 * MB)  # what it has fetched is no longer free
        with reserved_space(tmp_path, "org/first", 2000 * MB), reserved_space(tmp_path, "org/second", 700 * MB):
            pass


def test_a_process_that_was_killed_needs_no_space(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; import shutil\n"
        "from rbee_serve.model_files.download_space import reserved_space\n"
        f"with reserved_space(Path({str(tmp_path)!r}), 'org/first', 1000):\n"
        "    print('reserved', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reserved\n"
        assert len(list((tmp_path / FOLDER).glob("*-*"))) == 1
        with pytest.raises(InsufficientResources), reserved_space(tmp_path, "org/second", 1000 * MB):
            pass
        process.kill()
    with reserved_space(tmp_path, "org/second", 1000 * MB):
        assert len(list((tmp_path / FOLDER).glob("*-*"))) == 1


def test_a_model_that_is_complete_needs_no_space(tmp_path: Path) -> None:
    with reserved_space(tmp_path, "org/first", 1000 * MB), reserved_space(tmp_path, "org/second", 0):
        pass


def test_of_two_downloads_at_once_the_one_that_does_not_fit_is_refused(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * MB))
    folders: list[Path] = []
    reports: list[LoadProgress] = []

    def first() -> None:
        folders.append(download(HubModel("org/first"), reports.append, hub_cache=tmp_path, endpoint=hub.url))

    hub.continued.clear()
    thread = threading.Thread(target=first)
    thread.start()
    deadline = time.monotonic() + 20
    while "model.safetensors" not in hub.downloads and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(InsufficientResources, match=r"and other downloads need \d MB of them"):
        download(HubModel("org/second"), lambda progress: None, hub_cache=tmp_path, endpoint=hub.url)
    hub.continued.set()
    thread.join()
    assert (folders[0] / "model.safetensors").is_file()
    assert download(HubModel("org/second"), lambda progress: None, hub_cache=tmp_path, endpoint=hub.url).is_dir()
