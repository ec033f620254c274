"""The facts of a model: from its folder, from the Hub's small files, and from a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbee_serve.errors import ConfigurationError
from rbee_serve.memory_plan.facts_file import facts_in_folder, read_facts_file
from rbee_serve.memory_plan.facts_finder import FactsFinder
from rbee_serve.memory_plan.local_facts import facts_of_path
from rbee_serve.memory_plan.model_facts import ModelFacts, WeightFile, is_config
from tests.gpus.shipped import MODELS
from tests.model_files.stub_hub import Hub, Refusal, running_hub
from tests.model_files.tiny_models import GOOD_SAFETENSORS, ctranslate2_bytes, gguf_bytes, model_folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub on this machine and an empty cache."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with running_hub() as server:
        yield server


def test_only_small_configurations_near_the_root_are_read() -> None:
    names = ["config.json", "unet/config.json", "model_index.json", "a/b/config.json", "tokenizer.json"]
    assert [name for name in names if is_config(name)] == ["config.json", "unet/config.json", "model_index.json"]


def test_a_folder_has_the_elements_of_its_headers_and_its_configuration(tmp_path: Path) -> None:
    facts = facts_of_path("file:x", model_folder(tmp_path / "model", '{"hidden_size": 8}'))
    assert facts.weights == {"model.safetensors": WeightFile(len(GOOD_SAFETENSORS), {"F32": 4, "BF16": 2})}
    assert facts.config() == {"hidden_size": 8}
    sizes = {dtype: facts.weights_figure(dtype) for dtype in (None, "auto", "float16", "float32")}
    assert [figure and figure.bytes for figure in sizes.values()] == [len(GOOD_SAFETENSORS)] * 2 + [12, 24]


def test_a_gguf_counts_as_the_floats_that_it_becomes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes())
    figure = facts_of_path("file:x", path).weights_figure("bfloat16")
    assert figure is not None
    assert figure.bytes == 2 * (64 + 4)


def test_a_converted_whisper_counts_as_stored(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(ctranslate2_bytes())
    figure = facts_of_path("file:x", tmp_path).weights_figure("float32")
    assert figure is not None
    assert figure.bytes == len(ctranslate2_bytes())


def test_a_configuration_that_cannot_be_read_is_left_to_the_loader(tmp_path: Path) -> None:
    assert facts_of_path("file:x", model_folder(tmp_path / "model", "[")).config() == {}


def test_a_model_on_the_hub_is_known_from_its_header_and_nothing_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"config.json": b'{"hidden_size": 8}', "model.safetensors": GOOD_SAFETENSORS}
    finder = FactsFinder(endpoint=hub.url)
    facts = finder.find("hf:org/name")
    assert facts.weights == {"model.safetensors": WeightFile(len(GOOD_SAFETENSORS), {"F32": 4, "BF16": 2})}
    assert (facts.config(), finder.missing) == ({"hidden_size": 8}, {})
    assert facts.source == "the Hub, revision 01234567"
    assert not (tmp_path / "cache").exists()
    assert finder.find("hf:org/name") is facts


@pytest.mark.parametrize(
    "refusal",
    [Refusal(404, "RepoNotFound"), Refusal(403, "GatedRepo"), Refusal(500)],
    ids=["absent", "gated", "broken"],
)
def test_a_model_that_the_hub_does_not_give_is_unknown_in_one_sentence(hub: Hub, refusal: Refusal) -> None:
    hub.refusal = refusal
    finder = FactsFinder(endpoint=hub.url)
    assert not finder.find("hf:org/name").weights
    assert finder.missing == {
        "hf:org/name": "hf:org/name: the Hub does not give this model; check the name, or log in for a gated one"
    }


def test_the_same_weights_in_another_precision_and_parts_that_are_not_used_count_once(hub: Hub) -> None:
    index = b'{"unet": ["diffusers", "UNet"], "safety_checker": [null, null]}'
    parts = ("unet/model.safetensors", "unet/model.fp16.safetensors", "safety_checker/model.safetensors")
    hub.files = {"model_index.json": index, "all.safetensors": GOOD_SAFETENSORS} | dict.fromkeys(
        parts, GOOD_SAFETENSORS
    )
    assert list(FactsFinder(endpoint=hub.url).find("hf:org/name").weights) == ["unet/model.safetensors"]


def test_a_gguf_on_the_hub_is_unknown_until_it_is_here(hub: Hub) -> None:
    hub.files = {"model.gguf": gguf_bytes()}
    finder = FactsFinder(endpoint=hub.url)
    assert not finder.find("hf:org/name").weights
    assert list(finder.missing.values()) == [
        "hf:org/name: its weights are counted when its files are on this machine only"
    ]


def test_a_hub_that_is_not_reached_is_called_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    finder, url = FactsFinder(endpoint="http://127.0.0.1:9"), hub.url
    assert not finder.find("hf:org/name").weights
    monkeypatch.setattr(finder, "_endpoint", url)
    assert not finder.find("hf:org/other").weights
    assert [sentence.partition(", so its weights")[0] for sentence in finder.missing.values()] == [
        "hf:org/name is not in the cache and the Hub was not reached",
        "hf:org/other is not in the cache and the Hub was not reached",
    ]


def test_a_local_model_that_is_missing_is_one_sentence(tmp_path: Path) -> None:
    finder = FactsFinder()
    assert not finder.find(f"file:{tmp_path}/none").weights
    assert list(finder.missing.values()) == [f"file:{tmp_path}/none: {tmp_path}/none does not exist on this machine"]


def test_a_model_in_the_cache_is_read_there_and_an_incomplete_one_is_not(hub: Hub, tmp_path: Path) -> None:
    snapshot = tmp_path / "cache" / "models--org--name" / "snapshots" / "0123"
    model_folder(snapshot, '{"hidden_size": 8}')
    (refs := tmp_path / "cache" / "models--org--name" / "refs").mkdir()
    (refs / "main").write_text("0123")
    assert FactsFinder(endpoint="http://127.0.0.1:9").find("hf:org/name").source == "the files on this machine"
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-00001-of-00002.safetensors"}}')
    (snapshot / "model.safetensors").rename(snapshot / "model-00002-of-00002.safetensors")
    assert not FactsFinder(endpoint="http://127.0.0.1:9").find("hf:org/name").weights


def test_given_facts_come_first() -> None:
    given = ModelFacts("hf:org/name", "a file")
    assert FactsFinder({"hf:org/name": given}, endpoint="http://127.0.0.1:9").find("hf:org/name") is given


def test_every_file_of_facts_names_its_sources_and_its_revision() -> None:
    paths = sorted(MODELS.glob("*.json"))
    assert len(paths) > 10
    for path in paths:
        file = read_facts_file(path)
        assert file.model_ref.endswith(path.stem)
        assert all([file.revision, file.license.source, file.weights.source, file.config.source]), path
        assert file.weights.files, path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"assumed": False, "files": {}}}, r"weights\.source: is missing"),
        ({"revision": None}, r"revision: has no value"),
        ({"extra": 1}, r"extra: unknown key"),
    ],
)
def test_a_wrong_file_of_facts_is_refused_by_path(tmp_path: Path, change: dict[str, object], message: str) -> None:
    good = json.loads((MODELS / "Qwen3-4B-AWQ.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(good | change))
    with pytest.raises(ConfigurationError, match=message):
        facts_in_folder(tmp_path)


def test_a_folder_of_facts_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--facts: .* is no folder"):
        facts_in_folder(tmp_path / "none")
