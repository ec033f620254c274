"""The whole conversion of a language model of a few kilobytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.resolve import prepare
from rbee_serve.state import LoadProgress

gguf: Any = pytest.importorskip("gguf")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),  # torch and transformers warn of themselves
]

WIDTH, HEADS, FEED_FORWARD = 32, 2, 64
SPECIAL = ["<s>", "</s>", "<|turn_end|>"]


def write_gguf(path: Path, *, architecture: str = "llama", without: str = "") -> Path:
    """A Llama of one layer with random weights, a vocabulary of single bytes, and its own end-of-turn token."""
    import numpy
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = [*SPECIAL, *bytes_to_unicode().values(), "ab"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_eot_token_id(2)
    writer.add_add_bos_token(True)
    shapes = {
        "token_embd.weight": (len(tokens), WIDTH),
        "output_norm.weight": (WIDTH,),
        **{f"blk.0.{name}.weight": (WIDTH,) for name in ("attn_norm", "ffn_norm")},
        **{f"blk.0.{name}.weight": (WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_output")},
        **{f"blk.0.{name}.weight": (FEED_FORWARD, WIDTH) for name in ("ffn_gate", "ffn_up")},
        "blk.0.ffn_down.weight": (WIDTH, FEED_FORWARD),
    }
    random = numpy.random.default_rng(0)
    for name, shape in shapes.items():
        if name != without:
            writer.add_tensor(name, random.standard_normal(shape, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def ignored(progress: LoadProgress) -> None:
    """Ignore the progress."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_weights_equal_those_that_transformers_reads_from_the_gguf(model: Path, tmp_path: Path, dtype: Any) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    folder = prepare(f"file:{model}", ignored, cache_dir=tmp_path, dtype=dtype)
    expected = AutoModelForCausalLM.from_pretrained(
        str(model.parent), gguf_file=model.name, dtype=getattr(torch, dtype)
    ).state_dict()
    weights = load_file(folder / "model.safetensors")
    assert set(expected) - set(weights) == {"lm_head.weight"}  # tied to the embedding
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype


def test_end_of_turn_ends_a_generation_too(model: Path, tmp_path: Path) -> None:
    folder = prepare(f"file:{model}", ignored, cache_dir=tmp_path)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [1, 2]


def test_the_tokenizer_adds_bos_and_splits_digits_as_the_file_demands(model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(prepare(f"file:{model}", ignored, cache_dir=tmp_path)))
    assert tokenizer.convert_ids_to_tokens(tokenizer("a 7").input_ids) == ["<s>", "a", "Ġ", "7"]
    assert tokenizer.model_max_length == 64


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"without": "blk.0.attn_q.weight"}, r"lacks 1 tensors .*self_attn\.q_proj\.weight"),
        (
            {"architecture": "unknown-architecture"},
            "of the architecture unknown-architecture, which could not be converted",
        ),
    ],
)
def test_a_model_that_cannot_be_converted_is_refused(tmp_path: Path, change: dict[str, str], why: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", **change)
    with pytest.raises(ConfigurationError, match=why):
        prepare(f"file:{path}", ignored, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("tiny*"))
