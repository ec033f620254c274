"""The part of a GGUF conversion that imports torch: weights, config and tokenizer in transformers' format.

transformers' tables map the metadata and tensor names. Its `from_pretrained(gguf_file=...)` is not used: it reads the
file four times, reports no progress, and returns a model that cannot be saved. Instead each tensor is dequantised here
and assigned to a model on the meta device.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.gguf_header import GgufHeader, GgufTensor
from rbee_serve.state import LoadProgress

logger = logging.getLogger(__name__)

# llama.cpp splits numbers into single digits for these pre-tokenizers; transformers lacks the names.
SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})


def write_transformers_model(
    header: GgufHeader, folder: Path, dtype: str, report: Callable[[LoadProgress], None]
) -> None:
    """Fill `folder` with safetensors of `dtype`, config, generation config, tokenizer and chat template.

    Raises `ConfigurationError` if tensors are missing, or the exception of transformers for an unknown architecture.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    parameters = load_gguf_checkpoint(str(header.path))["config"]
    parameters.pop("_model_name_or_path", None)  # the title of the model, not a path
    config = AutoConfig.for_model(**parameters)
    element_type = getattr(torch, dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=element_type)
    weights = _dequantised(header, model, parameters, element_type, report)
    unexpected = model.load_state_dict(weights, strict=False, assign=True).unexpected_keys
    model.tie_weights()
    missing = [name for name, weight in model.state_dict().items() if weight.is_meta]
    if missing or unexpected:
        raise ConfigurationError(
            f"{header.path} lacks {len(missing)} tensors of a {header.architecture} model ({', '.join(missing[:3])})"
            f" and has {len(unexpected)} others"
        )
    model.generation_config.eos_token_id = _eos_token_ids(header, config.eos_token_id)
    model.generation_config._from_model_config = False  # else saving recreates it without these ids
    model.save_pretrained(str(folder))
    _tokenizer(header, config).save_pretrained(str(folder))


def _dequantised(
    header: GgufHeader,
    model: Any,
    parameters: dict[str, Any],
    element_type: Any,
    report: Callable[[LoadProgress], None],
) -> dict[str, Any]:
    """The dequantised tensors under transformers' names, in transformers' layout."""
    import gguf
    import numpy
    import torch
    from transformers import modeling_gguf_pytorch_utils as mapping

    processor = mapping.TENSOR_PROCESSORS.get(header.architecture, mapping.TensorProcessor)(config=parameters)
    names = mapping.get_gguf_hf_weights_map(_WithoutLayers(model), processor)
    data = numpy.memmap(header.path, mode="r")
    # The processors of mixture-of-experts models add tensors to this themselves.
    weights: dict[str, Any] = {}
    done, total = 0, header.bytes_as(element_type.itemsize)
    for tensor in header.tensors:
        values = gguf.dequantize(_blocks(data, tensor), gguf.GGMLQuantizationType[tensor.type.name])
        result = processor.process(
            weights=values,
            name=tensor.name,
            tensor_key_mapping=names,
            parsed_parameters={"tensors": weights},
        )
        if result.name in names:
            weights[names[result.name]] = torch.tensor(result.weights, dtype=element_type)
        elif result.name is not None:
            logger.warning("%s: the tensor %s is not used", header.path.name, tensor.name)
        done += tensor.elements * element_type.itemsize
        report(LoadProgress(stage="converting", bytes_done=done, bytes_total=total))
    return {name: weight.to(element_type) for name, weight in weights.items()}


class _WithoutLayers:
    """A model without the contents of its layer lists.

    transformers' name mapping visits every module and builds ggml's table of names at each. The whole model and its
    top-level parts are enough to find all names, so this stops the recursion at the lists: 0.3 s instead of 9 s.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self.config = getattr(module, "config", None)

    def state_dict(self) -> dict[str, Any]:
        """The parameters of this module and its children, by name."""
        parameters: dict[str, Any] = self._module.state_dict()
        return parameters

    def named_children(self) -> list[tuple[str, _WithoutLayers]]:
        """The children, unless this is a list of layers."""
        if type(self._module).__name__ == "ModuleList":
            return []
        return [(name, _WithoutLayers(child)) for name, child in self._module.named_children()]


def _blocks(data: Any, tensor: GgufTensor) -> Any:
    """A view of a tensor's bytes: the last axis is one row of blocks."""
    rows = tuple(reversed(tensor.dims[1:]))
    view = data[tensor.offset : tensor.offset + tensor.size_bytes]
    return view.reshape(*rows, tensor.size_bytes // math.prod(rows))


def _eos_token_ids(header: GgufHeader, eos: int | list[int] | None) -> list[int] | int | None:
    """All tokens that end a generation: end of text, and end of turn if that is another token."""
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    for key in ("eos_token_id", "eot_token_id", "eom_token_id"):
        found = header.metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(found, int) and found not in ids:
            ids = [*ids, found]
    return ids[0] if len(ids) == 1 else ids or None


def _tokenizer(header: GgufHeader, config: Any) -> Any:
    import tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(header.path.parent), gguf_file=header.path.name)
    backend = tokenizer.backend_tokenizer
    if header.metadata.get("tokenizer.ggml.pre") in SINGLE_DIGITS:
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [
                tokenizers.pre_tokenizers.Digits(individual_digits=True),
                tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if header.metadata.get("tokenizer.ggml.add_bos_token") is True and tokenizer.bos_token is not None:
        first = tokenizer("a").input_ids[:1]
        if first != [tokenizer.bos_token_id]:
            bos = tokenizer.bos_token
            backend.post_processor = tokenizers.processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
            )
    if (max_length := getattr(config, "max_position_embeddings", None)) is not None:
        tokenizer.model_max_length = max_length
    return tokenizer
