"""Texts through a transformer without padding, on small models of several architectures with weights by chance."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import pytest

from deployments.embedding.packed_attention import CannotPack, packed, use_packed_attention

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed"),
    pytest.mark.filterwarnings("default"),  # torch and transformers warn of themselves
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


def hidden(made: Any, features: dict[str, Any]) -> Any:
    import torch

    features = {name: value for name, value in features.items() if name != "cu_seq_lens_q"}
    with torch.inference_mode():
        return made(**features).last_hidden_state[0]


def one_by_one(made: Any, texts: Sequence[Sequence[int]]) -> Any:
    import torch

    return torch.cat([hidden(made, {"input_ids": torch.tensor([list(text)])}) for text in texts])


@pytest.mark.parametrize("name", ["Bert", "Electra", "Roberta", "XLMRoberta", "Qwen3"])
def test_each_token_becomes_what_it_is_when_its_text_is_alone(name: str) -> None:
    import torch

    made = model(name, **({"head_dim": 16, "num_key_value_heads": 1} if name == "Qwen3" else {}))
    expected = one_by_one(made, TEXTS)
    first_position = use_packed_attention(made)
    torch.testing.assert_close(hidden(made, packed(TEXTS, first_position)), expected, rtol=1e-4, atol=1e-5)


def test_positions_begin_behind_that_of_padding_where_the_architecture_has_one() -> None:
    assert use_packed_attention(model("Bert")) == 0
    assert use_packed_attention(model("Roberta", pad_token_id=1)) == 2


def test_other_features_are_treated_as_before() -> None:
    import torch

    made = model("Bert")
    rows, mask = torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    before = made(rows, attention_mask=mask).last_hidden_state
    use_packed_attention(made)
    torch.testing.assert_close(made(rows, attention_mask=mask).last_hidden_state, before)


def test_a_model_whose_layers_see_only_what_is_near_cannot_take_texts_packed() -> None:
    made = model("ModernBert", local_attention=WINDOW, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    use_packed_attention(made)
    with pytest.raises(CannotPack):
        hidden(made, packed([list(range(3, 3 + 3 * WINDOW)), [5, 6]]))
