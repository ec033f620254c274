"""The two kinds of models that label an image: with labels of their own, or by similarity to any texts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from deployments.torch_runtime.device import torch_device
from deployments.torch_runtime.literal_text import canonical, literal_tokenizer
from deployments.vision.image_model import Array, ImageModel, LabelSet, Pixels, Tokens
from deployments.vision.vision_options import VisionOptions
from rbee_serve.errors import ConfigurationError, InvalidRequest, RequestTooLong, Violation
from rbee_serve.model_files.memory_check import require_memory, weights_memory_bytes
from rbee_serve.model_files.resolve import Format, prepare
from rbee_serve.model_files.weight_files import weights_in
from rbee_serve.state import LoadProgress
from rbee_serve.worker.batching import Batcher
from rbee_serve.worker.registry import import_engine
from rbee_serve.worker.spec import LoadContext

FORMATS: tuple[Format, ...] = ("safetensors",)

TEMPLATE = "This is a photo of {}."
"""The text around a label; the default of transformers."""

MAX_CACHED_TEXTS = 4096
"""Texts whose vectors are kept: most requests compare their images with the same ones."""

PADDING = {"clip": "longest", "siglip": "max_length"}
"""How texts are padded, by the types of models that are known."""


class Classifier(ImageModel):
    """A model with a trained classification head, such as ViT, Swin or ConvNeXt."""

    def __init__(self, model: Any, processor: Any, options: VisionOptions, context: LoadContext) -> None:
        super().__init__(model, processor, options, context)
        config = model.config
        independent = config.problem_type == "multi_label_classification" or config.num_labels == 1
        self.activation = "sigmoid" if independent else "softmax"
        self._own = LabelSet([config.id2label[index] for index in range(config.num_labels)])

    def label_set(self, labels: Sequence[str] | None, template: str | None) -> LabelSet:
        """The model's own labels."""
        if labels is not None or template is not None:
            field = "labels" if labels is not None else "hypothesis_template"
            raise InvalidRequest.of_field(field, "absent", "this model has labels of its own; leave it out")
        return self._own

    async def logits(self, pixels: Pixels, label_set: LabelSet) -> Array:
        """The output of the classification head."""
        return await self.forward(pixels)

    def _rows(self, pixels: Any) -> Any:
        return self._model(pixel_values=pixels).logits


class ImageTextModel(ImageModel):
    """CLIP or SigLIP: the vectors of an image and a text are the more similar, the better they match."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        tokenizer: Any,
        labels: Sequence[str],
        options: VisionOptions,
        context: LoadContext,
    ) -> None:
        super().__init__(model, processor, options, context)
        self.activation = "sigmoid" if model.config.model_type == "siglip" else "softmax"
        self._scale = model.logit_scale.exp().item()
        self._bias = model.logit_bias.item() if hasattr(model, "logit_bias") else 0.0
        self._labels = labels
        self._tokenizer = literal_tokenizer(tokenizer)
        self._tokenizer_lock = threading.Lock()  # a tokenizer of transformers serves one thread at a time
        self._max_tokens: int = model.config.text_config.max_position_embeddings
        self._texts: Batcher[Tokens, Array] = Batcher(
            self._text_vectors, lambda tokens: 1, max_batch_cost=self._batch, watchdog=context.watchdog
        )
        self._cached_texts: dict[Tokens, Array] = {}

    def label_set(self, labels: Sequence[str] | None, template: str | None) -> LabelSet:
        """The request's labels, or those of the configuration, each within the template."""
        labels = self._labels if labels is None else labels
        with self._tokenizer_lock:
            texts = self._tokenizer([canonical((template or TEMPLATE).replace("{}", label)) for label in labels])[
                "input_ids"
            ]
        limit = self._max_tokens
        too_long = [
            Violation(
                f"labels[{index}]",
                f"tokens <= {limit}",
                f"has {len(tokens)} tokens in the template, but the model takes {limit}",
            )
            for index, tokens in enumerate(texts)
            if len(tokens) > limit
        ]
        if too_long:
            raise RequestTooLong.because(too_long)
        return LabelSet(labels, [tuple(tokens) for tokens in texts])

    async def logits(self, pixels: Pixels, label_set: LabelSet) -> Array:
        """The scaled similarity of the image and each text."""
        import numpy as np

        texts = [row async for row in self._texts.results(label_set.texts)]
        image = _normalised(await self.forward(pixels))
        return np.stack(texts) @ image * self._scale + self._bias

    def _rows(self, pixels: Any) -> Any:
        return self._model.get_image_features(pixel_values=pixels).pooler_output

    def _text_vectors(self, texts: Sequence[Tokens]) -> list[Array]:
        import torch

        if new := [text for text in dict.fromkeys(texts) if text not in self._cached_texts]:
            padding = PADDING[self._model.config.model_type]
            padded = self._tokenizer.pad(
                {"input_ids": [list(text) for text in new]},
                padding=padding,
                max_length=self._max_tokens,
                return_tensors="pt",
            ).to(self._model.device)
            with torch.inference_mode():
                rows = self._model.get_text_features(**padded).pooler_output.float().cpu().numpy()
            self._cached_texts.update(zip(new, map(_normalised, rows), strict=True))
        found = [self._cached_texts[text] for text in texts]
        while len(self._cached_texts) > MAX_CACHED_TEXTS:
            del self._cached_texts[next(iter(self._cached_texts))]
        return found

    def close(self) -> None:
        """See `ImageModel.close`."""
        super().close()
        self._texts.close()


def _normalised(vector: Array) -> Array:
    return vector / float(vector @ vector) ** 0.5


def open_model(context: LoadContext, options: VisionOptions, labels: Sequence[str]) -> ImageModel:
    """Fetch and check a model's files, and load it. `labels` are for models that have none of their own.

    Raises `ConfigurationError` for a model of another kind, `InsufficientVram`, `InsufficientResources`.
    """
    worker, device = context.worker, context.device
    assert worker.model_ref is not None
    folder = prepare(worker.model_ref, context.report, formats=FORMATS, variant_for=options.dtype)
    context.report(LoadProgress(stage="starting_engine"))
    transformers = import_engine("transformers", "vision")
    local = {"local_files_only": True, "trust_remote_code": False}
    config = transformers.AutoConfig.from_pretrained(folder, **local)
    classifies = any(name.endswith("ForImageClassification") for name in config.architectures or ())
    if not classifies and config.model_type not in PADDING:
        raise ConfigurationError(
            f"worker {worker.id}: {folder} is a model of the type {config.model_type}, and neither an image classifier"
            " nor CLIP or SigLIP"
        )
    context.wait_for_gpu()
    require_memory(device, {"weights": weights_memory_bytes(folder, options.dtype)})
    context.report(LoadProgress(stage="loading_to_vram"))
    auto_class = (
        transformers.AutoModelForImageClassification
        if classifies
        else transformers.AutoModelForZeroShotImageClassification
    )
    given = {
        "dtype": options.dtype,
        "variant": weights_in(folder, options.dtype).variant,
        "attn_implementation": options.attn_implementation,
    }
    model = auto_class.from_pretrained(
        folder, use_safetensors=True, **local, **{name: value for name, value in given.items() if value is not None}
    )
    model.to(torch_device(device)).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, **local)
    if classifies:
        return Classifier(model, processor, options, context)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **local)
    return ImageTextModel(model, processor, tokenizer, labels, options, context)
