"""The two kinds of models that tell what a picture shows: with labels of their own, or held against any texts."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Sequence
from typing import Any

from deployments.torch_runtime.device import torch_device
from deployments.vision.image_model import Array, Choice, Pixels, Tokens, VisionModel, VisionOptions
from rbee_serve.errors import ConfigurationError, InvalidRequest, RequestTooLong, Violation
from rbee_serve.model_files.memory_check import require_memory, weights_memory_bytes
from rbee_serve.model_files.resolve import Format, prepare
from rbee_serve.state import LoadProgress
from rbee_serve.worker.batching import Batcher
from rbee_serve.worker.registry import import_engine
from rbee_serve.worker.spec import LoadContext

FORMATS: tuple[Format, ...] = ("safetensors",)

TEMPLATE = "This is a photo of {}."
"""What a label is made a text with; transformers' own."""

MAX_CACHED_TEXTS = 4096
"""Texts whose vectors are kept: most requests hold their pictures against the same ones."""

PADDING = {"clip": "longest", "siglip": "max_length"}
"""To which length texts are brought, by the types of models that are known."""


class Classifier(VisionModel):
    """A model with a layer that has learned labels, such as ViT, Swin or ConvNeXt."""

    def __init__(self, model: Any, processor: Any, options: VisionOptions, context: LoadContext) -> None:
        super().__init__(model, processor, options, context)
        config = model.config
        several = config.problem_type == "multi_label_classification" or config.num_labels == 1
        self.activation = "sigmoid" if several else "softmax"
        self._own = Choice([config.id2label[index] for index in range(config.num_labels)])

    def choice(self, labels: Sequence[str] | None, template: str | None) -> Choice:
        """The model's own labels."""
        if labels is not None or template is not None:
            field = "labels" if labels is not None else "hypothesis_template"
            raise InvalidRequest.of_field(field, "absent", "this model has labels of its own; leave it out")
        return self._own

    async def logits(self, pixels: Pixels, choice: Choice) -> Array:
        """What the last layer says."""
        return await self.look(pixels)

    def _rows(self, pixels: Any) -> Any:
        return self._model(pixel_values=pixels).logits


class ImageTextModel(VisionModel):
    """CLIP or SigLIP: a picture and a text are the nearer, the better they fit."""

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
        self._tokenizer = tokenizer
        self._tokenizing = threading.Lock()  # a tokenizer of transformers cannot be used by two threads at a time
        self._most_tokens: int = model.config.text_config.max_position_embeddings
        self._texts: Batcher[Tokens, Array] = Batcher(
            self._read_texts, lambda tokens: 1, max_batch_cost=self._batch, batch_overhead=0, watchdog=context.watchdog
        )
        self._known: dict[Tokens, Array] = {}

    def choice(self, labels: Sequence[str] | None, template: str | None) -> Choice:
        """The request's labels, or those of the configuration, each in the words of the template."""
        labels = self._labels if labels is None else labels
        with self._tokenizing:
            texts = self._tokenizer([(template or TEMPLATE).replace("{}", label) for label in labels])["input_ids"]
        most = self._most_tokens
        too_long = [
            Violation(
                f"labels[{index}]",
                f"tokens <= {most}",
                f"has {len(tokens)} tokens in the template, but the model takes {most}",
            )
            for index, tokens in enumerate(texts)
            if len(tokens) > most
        ]
        if too_long:
            raise RequestTooLong.because(too_long)
        return Choice(labels, [tuple(tokens) for tokens in texts])

    async def logits(self, pixels: Pixels, choice: Choice) -> Array:
        """How near the picture is to each text."""
        texts = [row async for row in self._texts.results(choice.texts)]
        picture = _of_length_one(await self.look(pixels))
        return importlib.import_module("numpy").stack(texts) @ picture * self._scale + self._bias

    def _rows(self, pixels: Any) -> Any:
        return self._model.get_image_features(pixel_values=pixels).pooler_output

    def _read_texts(self, texts: Sequence[Tokens]) -> list[Array]:
        if new := [text for text in dict.fromkeys(texts) if text not in self._known]:
            padding = PADDING[self._model.config.model_type]
            padded = self._tokenizer.pad(
                {"input_ids": [list(text) for text in new]},
                padding=padding,
                max_length=self._most_tokens,
                return_tensors="pt",
            ).to(self._model.device)
            with self._torch.inference_mode():
                rows = self._model.get_text_features(**padded).pooler_output.float().cpu().numpy()
            self._known.update(zip(new, map(_of_length_one, rows), strict=True))
        found = [self._known[text] for text in texts]
        while len(self._known) > MAX_CACHED_TEXTS:
            del self._known[next(iter(self._known))]
        return found

    def close(self) -> None:
        """See `VisionModel.close`."""
        super().close()
        self._texts.close()


def _of_length_one(vector: Array) -> Array:
    return vector / float(vector @ vector) ** 0.5


def open_model(context: LoadContext, options: VisionOptions, labels: Sequence[str]) -> VisionModel:
    """Fetch and check a model's files, and load it. `labels` are for models that have none of their own.

    Raises `ConfigurationError` for a model of another kind, `InsufficientVram`, `InsufficientResources`.
    """
    worker, device = context.worker, context.device
    assert worker.model_ref is not None
    folder = prepare(worker.model_ref, context.report, formats=FORMATS)
    require_memory(device, {"weights": weights_memory_bytes(folder, options.dtype)}, device.fraction)
    context.report(LoadProgress(stage="starting_engine"))
    transformers = import_engine("transformers", "vision")
    here = {"local_files_only": True, "trust_remote_code": False}
    config = transformers.AutoConfig.from_pretrained(folder, **here)
    classifies = any(name.endswith("ForImageClassification") for name in config.architectures or ())
    if not classifies and config.model_type not in PADDING:
        raise ConfigurationError(
            f"worker {worker.id}: {folder} is a model of the type {config.model_type}, and neither an image classifier"
            " nor CLIP or SigLIP"
        )
    context.report(LoadProgress(stage="loading_to_vram"))
    kind = "AutoModelForImageClassification" if classifies else "AutoModelForZeroShotImageClassification"
    chosen = {"dtype": options.dtype, "attn_implementation": options.attn_implementation}
    model = getattr(transformers, kind).from_pretrained(
        folder, use_safetensors=True, **here, **{name: value for name, value in chosen.items() if value is not None}
    )
    model.to(torch_device(device)).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, **here)
    if classifies:
        return Classifier(model, processor, options, context)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **here)
    return ImageTextModel(model, processor, tokenizer, labels, options, context)
