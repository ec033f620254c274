"""Downloads from a local HTTP server that answers as the Hugging Face Hub does."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from rbee_serve.errors import ConfigurationError, InsufficientResources
from rbee_serve.model_files import hub_requests
from rbee_serve.model_files.huggingface_download import download, files_to_download
from rbee_serve.model_files.model_ref import HubModel
from rbee_serve.state import LoadProgress
from tests.model_files.stub_hub import FILES, Hub, Refusal, silent_hub
from tests.served.measured import timed

pytest.importorskip("huggingface_hub")

MODEL = HubModel("org/name")


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


@pytest.mark.parametrize(
    ("dtype", "weights"), [("float16", ["model.fp16.safetensors"]), ("auto", ["model.safetensors"])]
)
def test_the_variant_for_the_dtype_is_downloaded_and_the_other_is_not(
    hub: Hub, tmp_path: Path, dtype: str, weights: list[str]
) -> None:
    hub.files["model.fp16.safetensors"] = b"half"
    download(MODEL, ignored, variant_for=dtype, hub_cache=tmp_path, endpoint=hub.url)
    assert sorted(hub.downloads) == ["config.json", *weights]


def test_the_files_that_an_index_names_are_downloaded_and_no_other_weights(hub: Hub, tmp_path: Path) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "mtp.safetensors"]
    index = json.dumps({"weight_map": dict.fromkeys("ab", shards[0]) | {"c": shards[1], "d": shards[2]}})
    hub.files |= {name: name.encode() for name in (*shards, "model-00001-of-00003.safetensors", "draft.safetensors")}
    hub.files["model.safetensors.index.json"] = index.encode()
    folder = download(MODEL, ignored, hub_cache=tmp_path, endpoint=hub.url)
    assert sorted(path.name for path in folder.glob("*.safetensors")) == shards
    assert len(hub.downloads) == len(set(hub.downloads)) == 5


def test_a_repository_without_a_file_of_its_index_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files["model.safetensors.index.json"] = b'{"weight_map": {"a": "model-00001-of-00001.safetensors"}}'
    with pytest.raises(ConfigurationError, match=r"hf:org/name lacks model-00001-of-00001.safetensors"):
        download(MODEL, ignored, hub_cache=tmp_path, endpoint=hub.url)


def test_a_cached_model_costs_one_request_and_no_download(hub: Hub, tmp_path: Path) -> None:
    first = download(MODEL, ignored, hub_cache=tmp_path, endpoint=hub.url)
    hub.downloads.clear()
    hub.paths.clear()
    reports: list[LoadProgress] = []
    assert download(MODEL, reports.append, hub_cache=tmp_path, endpoint=hub.url) == first
    assert (hub.downloads, hub.paths) == ([], ["/api/models/org/name"])
    assert reports[0].bytes_done == reports[0].bytes_total


def test_without_the_hub_the_cached_copy_is_used(hub: Hub, tmp_path: Path) -> None:
    first = download(MODEL, ignored, hub_cache=tmp_path, endpoint=hub.url)
    assert download(MODEL, ignored, hub_cache=tmp_path, endpoint="http://127.0.0.1:9") == first


def test_a_hub_that_never_answers_is_waited_for_no_longer_than_the_limit(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (hub_requests.CONNECT_TIMEOUT_S, hub_requests.ANSWER_TIMEOUT_S) == (5, 10)
    monkeypatch.setattr(hub_requests, "ANSWER_TIMEOUT_S", 0.3)
    first = download(MODEL, ignored, hub_cache=tmp_path, endpoint=hub.url)
    with silent_hub() as url:
        with timed("a Hub that never answers (0.3 s)", "the cached copy is used", 1):
            assert download(MODEL, ignored, hub_cache=tmp_path, endpoint=url) == first
        with timed("a Hub that never answers (0.3 s)", "a model that is not cached is refused", 1):  # noqa: SIM117
            with pytest.raises(ConfigurationError, match="not in the cache and could not be downloaded"):
                download(HubModel("org/other"), ignored, hub_cache=tmp_path, endpoint=url)


def test_every_request_to_the_hub_has_a_limit(hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub.utils import close_session, get_session

    hub_requests.limit_requests()
    limits: list[dict[str, float | None]] = []
    get_session().event_hooks["request"].append(lambda request: limits.append(request.extensions["timeout"]))
    download(MODEL, ignored, hub_cache=tmp_path, endpoint=hub.url)
    close_session()
    assert len(limits) == len(hub.paths)
    assert all(limit[name] is not None for limit in limits for name in ("connect", "read", "write"))


def test_without_the_hub_and_a_cached_copy_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not in the cache and could not be downloaded"):
        download(MODEL, ignored, hub_cache=tmp_path, endpoint="http://127.0.0.1:9")


BAD_TOKEN = Refusal(401, "", "Invalid credentials in Authorization header")


@pytest.mark.parametrize(
    ("token", "refusal", "why"),
    [
        ("", Refusal(404, "RepoNotFound"), "not on the Hugging Face Hub, or is private; .* HF_TOKEN"),
        ("", Refusal(401, "RepoNotFound"), "not on the Hugging Face Hub, or is private; .* HF_TOKEN"),
        ("", Refusal(401, "GatedRepo"), "gated; accept its terms at .*, then set HF_TOKEN"),
        ("hf_valid", Refusal(403, "GatedRepo"), "gated; accept its terms at .*, then set HF_TOKEN"),
        ("hf_expired", BAD_TOKEN, "the token in HF_TOKEN, or of `hf auth login`, is refused by the Hub"),
        ("hf_limited", Refusal(403, "", "Forbidden"), "may not be read with this access to the Hub; set HF_TOKEN"),
        ("", Refusal(403, "", "Access to this resource is disabled."), "disabled on the .* choose another model"),
        ("", Refusal(404, "RevisionNotFound"), "has no revision v9"),
        ("hf_valid", Refusal(500), "the Hub returned status 500; try again later"),
    ],
)
def test_every_error_of_the_hub_says_what_to_do(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, refusal: Refusal, why: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    hub.refusal = refusal
    with pytest.raises(ConfigurationError, match=why) as caught:
        download(HubModel("org/name", "v9"), ignored, hub_cache=tmp_path, endpoint=hub.url)
    assert "127.0.0.1" not in str(caught.value)


def test_a_model_larger_than_the_free_disk_is_not_downloaded(hub: Hub, tmp_path: Path) -> None:
    hub.claimed_sizes["model.safetensors"] = 10**18
    with pytest.raises(InsufficientResources, match=r"needs 1,000,000,000,000 MB more"):
        download(MODEL, ignored, hub_cache=tmp_path / "not" / "there", endpoint=hub.url)
    assert hub.downloads == []


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),  # as the Xet library reports it
    ],
)
def test_a_disk_that_runs_full_is_reported_with_the_numbers(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(url: str, file: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr("huggingface_hub.file_download.http_get", fail)
    with pytest.raises(
        InsufficientResources, match=r"hf:org/name filled the disk of .*: 2 MB were still to be fetched"
    ):
        download(MODEL, ignored, hub_cache=tmp_path, endpoint=hub.url)


def test_a_cache_that_cannot_be_written_is_named(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"cannot be written to .*/file/cache; set HF_HOME to a folder"):
        download(MODEL, ignored, hub_cache=tmp_path / "file" / "cache", endpoint=hub.url)


def test_offline_mode_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigurationError, match="HF_HUB_OFFLINE is set"):
        download(MODEL, ignored, hub_cache=tmp_path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["model.safetensors", "tokenizer.json", "pytorch_model.bin"], ["model.safetensors", "tokenizer.json"]),
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
def test_weights_in_the_first_format_that_is_accepted_are_downloaded(files: list[str], expected: list[str]) -> None:
    assert files_to_download(MODEL, dict.fromkeys(files, 1)) == expected


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (["pytorch_model.bin"], "pickles"),
        (["README.md"], "neither"),
        (["a.gguf", "b.gguf"], "2 GGUF files"),
        (["consolidated.safetensors", "params.json", "tekken.json"], "hf:org/name has Mistral's own files only"),
    ],
)
def test_a_repository_without_weights_to_load_is_refused(files: list[str], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        files_to_download(MODEL, dict.fromkeys(files, 1))
