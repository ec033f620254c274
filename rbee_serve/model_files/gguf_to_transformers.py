"""The heavy part of a GGUF conversion: weights, config and tokenizer in transformers' form.

What the metadata and the tensor names mean is transformers' knowledge and is taken from there. It is not taken by
`from_pretrained(gguf_file=...)`, which reads the file four times, tells nothing while it works, and makes a model that
refuses to be saved; instead each tensor is dequantised here and put into a model that was never initialised.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rbee_serve.errors import ConfigurationError
from rbee_serve.model_files.gguf_header import GgufHeader, GgufTensor
from rbee_serve.state import LoadProgress

logger = logging.getLogger(__name__)

# llama.cpp splits numbers into single digits for these vocabularies; transformers does not know the names.
DIGIT_BY_DIGIT = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})


def write_transformers_model(
    header: GgufHeader, folder: Path, dtype: str, report: Callable[[LoadProgress], None]
) -> None:
    """Fill `folder` with safetensors of `dtype`, config, generation config, tokenizer and chat template.

    Raises `ConfigurationError` where tensors are missing, or whatever transformers raises on a model that it does not
    know.
    """
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    mapping: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    known = mapping.load_gguf_checkpoint(str(header.path))["config"]
    known.pop("_model_name_or_path", None)  # the title of the model, not a place to load it from
    config = transformers.AutoConfig.for_model(**known)
    element_type = getattr(torch, dtype)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=element_type)
    weights = _dequantised(header, model, known, element_type, report)
    unexpected = model.load_state_dict(weights, strict=False, assign=True).unexpected_keys
    model.tie_weights()
    missing = [name for name, weight in model.state_dict().items() if weight.is_meta]
    if missing or unexpected:
        raise ConfigurationError(
            f"{header.path} lacks {len(missing)} tensors of a {header.architecture} model ({', '.join(missing[:3])})"
            f" and has {len(unexpected)} others"
        )
    model.generation_config.eos_token_id = _end_ids(header, config.eos_token_id)
    model.generation_config._from_model_config = False  # or it would be made anew, without the ids above
    model.save_pretrained(str(folder))
    _tokenizer(header, transformers, config).save_pretrained(str(folder))


def _dequantised(
    header: GgufHeader, model: Any, known: dict[str, Any], element_type: Any, report: Callable[[LoadProgress], None]
) -> dict[str, Any]:
    """The tensors by transformers' names, undone of what the conversion to GGUF did to them."""
    gguf: Any = importlib.import_module("gguf")
    numpy: Any = importlib.import_module("numpy")
    torch: Any = importlib.import_module("torch")
    mapping: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    processor = mapping.TENSOR_PROCESSORS.get(header.architecture, mapping.TensorProcessor)(config=known)
    names = mapping.get_gguf_hf_weights_map(_WithoutLayers(model), processor)
    data = numpy.memmap(header.path, mode="r")
    # Processors of models with experts put their tensors here themselves.
    weights: dict[str, Any] = {}
    done, total = 0, header.bytes_as(element_type.itemsize)
    for tensor in header.tensors:
        numbers = gguf.dequantize(_blocks(data, tensor), gguf.GGMLQuantizationType[tensor.type.name])
        result = processor.process(
            weights=numbers,
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
    """A model that hides what its lists of layers are made of.

    transformers' name mapping walks through every module and builds ggml's table of names at each. Names are only ever
    found from the whole model or from one of its large parts, so the walk ends at the lists: 9 s become 0.3 s.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self.config = getattr(module, "config", None)

    def state_dict(self) -> dict[str, Any]:
        """Parameters by name, of this part and all below."""
        parameters: dict[str, Any] = self._module.state_dict()
        return parameters

    def named_children(self) -> list[tuple[str, _WithoutLayers]]:
        """The large parts."""
        if type(self._module).__name__ == "ModuleList":
            return []
        return [(name, _WithoutLayers(child)) for name, child in self._module.named_children()]


def _blocks(data: Any, tensor: GgufTensor) -> Any:
    """A view of a tensor's bytes, one row of blocks after the other."""
    rows = tuple(reversed(tensor.dims[1:]))
    view = data[tensor.offset : tensor.offset + tensor.size_bytes]
    return view.reshape(*rows, tensor.size_bytes // math.prod(rows))


def _end_ids(header: GgufHeader, eos: int | list[int] | None) -> list[int] | int | None:
    """Every token that ends an answer: where the end of a turn is another token than the end of a text, both."""
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    for key in ("eos_token_id", "eot_token_id", "eom_token_id"):
        found = header.metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(found, int) and found not in ids:
            ids = [*ids, found]
    return ids[0] if len(ids) == 1 else ids or None


def _tokenizer(header: GgufHeader, transformers: Any, config: Any) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(header.path.parent), gguf_file=header.path.name)
    backend = tokenizer.backend_tokenizer
    tokenizers: Any = importlib.import_module("tokenizers")
    if header.metadata.get("tokenizer.ggml.pre") in DIGIT_BY_DIGIT:
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
    if (longest := getattr(config, "max_position_embeddings", None)) is not None:
        tokenizer.model_max_length = longest
    return tokenizer
