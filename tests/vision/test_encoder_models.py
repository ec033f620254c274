"""The models, options and images that the tasks `classify` and `embed` accept and refuse."""

from __future__ import annotations

import io
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deployments.request_fields import MAX_FILE_BYTES
from deployments.vision import classify, embed
from deployments.vision.classify import ClassifyBackend
from deployments.vision.image_encoders import ImageTextModel
from deployments.vision.vision_options import VisionOptions
from rbee_serve.errors import ConfigurationError, InvalidRequest
from tests.vision.encoders import FILES, context, labels
from tests.vision.tiny_models import random_vit

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("default"),  # for the warnings of torch and transformers
]


@pytest.mark.parametrize("spec", [classify.SPEC, embed.SPEC])
def test_the_long_request_is_an_image_just_below_the_pixel_bound(spec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # a test that decodes in this process sets its own bound
    request = spec.long_request()
    assert len(request.image) < MAX_FILE_BYTES
    with Image.open(io.BytesIO(request.image)) as image:
        assert VisionOptions().max_pixels * 0.95 < image.width * image.height <= VisionOptions().max_pixels


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = random_vit(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["ViTModel"]}))
    with pytest.raises(ConfigurationError, match="is a model of the type vit, and neither an image classifier nor"):
        classify.load(context(folder))


def test_weights_in_half_precision_only_are_found(tmp_path: Path) -> None:
    folder = random_vit(tmp_path)
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    with closing(classify.load(context(folder))) as backend:
        assert backend.memory_bytes() > 0


def test_a_pickle_is_refused_before_anything_starts(tmp_path: Path) -> None:
    folder = random_vit(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match="may be a pickle"):
        classify.check(context(folder).worker)


@pytest.mark.parametrize(
    ("engine", "fault"),
    [
        ({"dtype": "int8"}, "engine.dtype"),
        ({"labels": []}, "engine.labels"),
        ({"max_pixels": 10**9}, "engine.max_pixels"),
        ({"trust_remote_code": True}, "engine.trust_remote_code: unknown key"),
    ],
)
def test_options_are_checked_before_anything_starts(
    engine: dict[str, Any], fault: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        classify.check(context(folders["clip"], **engine).worker)


async def test_the_configured_number_of_pixels_is_enforced(folders: dict[str, Path]) -> None:
    with closing(classify.load(context(folders["vit"], max_pixels=2000))) as backend:
        assert len(await labels(backend, FILES["png"])) == 5
        with pytest.raises(InvalidRequest, match="image: must have at most 2000 pixels; scale it down"):
            await labels(backend, FILES["large"])


def test_only_clip_and_siglip_are_image_text_models(backends: dict[str, ClassifyBackend]) -> None:
    assert [isinstance(backend._model, ImageTextModel) for backend in backends.values()] == [False, True, True]
