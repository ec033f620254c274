"""Sequence packing on small models of several architectures with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import pytest

from deployments.embedding.packed_attention import CannotPack, packed, use_packed_attention

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed"),
    pytest.mark.filterwarnings("default"),  # warnings from torch and transformers
]

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 99}
WINDOW = 8
TEXTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [18]]


def model(name: str, **options: Any) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    configuration = getattr(transformers, f"{name}Config")(**SIZES, **options)
    return getattr(transformers, f"{name}Model")(configuration).eval()


def hidden(bert: Any, features: dict[str, Any]) -> Any:
    import torch

    features = {name: value for name, value in features.items() if name != "cu_seq_lens_q"}
    with torch.inference_mode():
        return bert(**features).last_hidden_state[0]


def one_by_one(bert: Any, texts: Sequence[Sequence[int]]) -> Any:
    import torch

    return torch.cat([hidden(bert, {"input_ids": torch.tensor([list(text)])}) for text in texts])


@pytest.mark.parametrize("name", ["Bert", "Electra", "Roberta", "XLMRoberta", "Qwen3"])
def test_packed_texts_have_the_hidden_states_of_each_text_alone(name: str) -> None:
    import torch

    bert = model(name, **({"head_dim": 16, "num_key_value_heads": 1} if name == "Qwen3" else {}))
    expected = one_by_one(bert, TEXTS)
    first_position = use_packed_attention(bert)
    torch.testing.assert_close(hidden(bert, packed(TEXTS, first_position)), expected, rtol=1e-4, atol=1e-5)


def test_positions_start_after_the_padding_position() -> None:
    assert use_packed_attention(model("Bert")) == 0
    assert use_packed_attention(model("Roberta", pad_token_id=1)) == 2


def test_padded_features_give_the_same_output_as_before() -> None:
    import torch

    bert = model("Bert")
    rows, mask = torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    before = bert(rows, attention_mask=mask).last_hidden_state
    use_packed_attention(bert)
    torch.testing.assert_close(bert(rows, attention_mask=mask).last_hidden_state, before)


def test_a_model_with_sliding_window_attention_cannot_pack() -> None:
    bert = model("ModernBert", local_attention=WINDOW, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    use_packed_attention(bert)
    with pytest.raises(CannotPack):
        hidden(bert, packed([list(range(3, 3 + 3 * WINDOW)), [5, 6]]))
