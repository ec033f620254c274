"""The dimensions of a transformer, from the `config.json` of its many families. A missing key is None, no error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where models with several parts keep the configuration of their language model."""

VISION_CONFIGS = ("vision_config", "visual", "vit_config", "vision_tower_config")
"""Where they keep that of their image encoder."""

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", "num_query_groups")
HIDDEN = ("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "embedding_size")
INTERMEDIATE = ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "mlp_dim")
POSITIONS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_seq_length",
    "max_sequence_length",
)  # fmt: skip

GATED_ACTIVATIONS = frozenset({"silu", "swish", "swiglu", "geglu", "reglu"})
GATED_FAMILIES = ("gemma", "modernbert")
"""Model types with a gate in the MLP that their activation does not show."""


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of the language model: nested, or the file itself."""
    for key in TEXT_CONFIGS:
        if isinstance(inner := config.get(key), Mapping) and inner:
            return text_config(inner)
    return config


def vision_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of the image encoder; empty for a model without one."""
    for owner in (config, *(config.get(key) for key in TEXT_CONFIGS)):
        for key in VISION_CONFIGS:
            if isinstance(owner, Mapping) and isinstance(inner := owner.get(key), Mapping):
                return inner
    return {}


def dimension(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The first of these keys that has a positive whole number."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def head_size(config: Mapping[str, Any]) -> int | None:
    """Elements of one attention head."""
    if (size := dimension(config, ("head_dim", "kv_channels", "attention_head_dim"))) is not None:
        return size
    hidden, heads = dimension(config, HIDDEN), dimension(config, HEADS)
    return hidden // heads if hidden and heads else None


def kv_heads(config: Mapping[str, Any]) -> int | None:
    """Heads with keys and values of their own: fewer than heads with grouped-query attention, one with multi-query."""
    if config.get("multi_query") is True and not config.get("new_decoder_architecture"):
        return 1
    return dimension(config, KV_HEADS) or dimension(config, HEADS)


def attention_layers(config: Mapping[str, Any]) -> int | None:
    """Layers with a KV cache. Layers with a window count like all others; those of linear attention or a state space
    have none that grows."""
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and kinds:
        return sum(1 for kind in kinds if str(kind) in ("full_attention", "sliding_attention", "chunked_attention"))
    return dimension(config, LAYERS)


def intermediate_size(config: Mapping[str, Any]) -> int | None:
    """The width of the MLP for one token, that of all its experts together; four times the hidden size where the file
    does not have it, as in GPT-2."""
    experts = dimension(config, ("num_experts_per_tok", "num_experts_per_token", "moe_topk"))
    expert_width = dimension(config, ("moe_intermediate_size", "expert_dim"))
    width, hidden = dimension(config, INTERMEDIATE), dimension(config, HIDDEN)
    widths = [width or 0, experts * expert_width if experts and expert_width else 0]
    return max(widths) or (4 * hidden if hidden else None)


def has_gate(config: Mapping[str, Any]) -> bool:
    """Whether the MLP holds a gate beside its input, so that three tensors of its width exist at once, not two."""
    if str(config.get("model_type", "")).startswith(GATED_FAMILIES):
        return True
    kind = config.get("hidden_act", config.get("hidden_activation", config.get("activation_function")))
    return str(kind).lower() in GATED_ACTIVATIONS
