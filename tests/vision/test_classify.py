"""The vision worker's tasks `classify` and `embed` on tiny random models, without Ray."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from deployments.vision import classify, embed, image_encoders
from deployments.vision.classify import ClassifyBackend, ClassifyRequest
from deployments.vision.embed import EmbedBackend, EmbedRequest
from deployments.vision.image_encoders import ImageTextModel
from deployments.vision.image_field import MAX_FILE_BYTES
from deployments.vision.vision_options import VisionOptions
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError, InvalidRequest, RequestTooLong
from rbee_serve.events import End, Event, Metrics, Narration, Output, Started
from rbee_serve.outputs import LabelOutput
from rbee_serve.replica.event_stream import ordered
from rbee_serve.result import collect
from rbee_serve.validation.parse import parse_object
from rbee_serve.worker.spec import LoadContext
from tests import devices
from tests.vision.images import encoded, sample_image
from tests.vision.tiny_models import random_clip, random_siglip, random_vit

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("default"),  # for the warnings of torch and transformers
]

MAKERS = {"vit": random_vit, "clip": random_clip, "siglip": random_siglip}
NAMES = ["a cat", "two dogs", "the sea", "a house with a red roof", "nothing at all"]


def _rotated(data: Any, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(data, "JPEG", exif=exif)


FILES = {
    "png": encoded(sample_image(), "PNG"),
    "large": encoded(sample_image(300, 200, seed=1), "JPEG"),
    "high": encoded(sample_image(20, 150, seed=2), "WEBP"),
    "line": encoded(sample_image(3, 40, seed=3), "PNG"),
    "pixel": encoded(sample_image(1, 1, seed=4), "PNG"),
    "rotated": _rotated(sample_image(90, 60, seed=5), 6),
    "grey": encoded(Image.fromarray(sample_image(seed=6)).convert("L"), "JPEG"),
    "cmyk": encoded(Image.fromarray(sample_image(seed=7)).convert("CMYK"), "JPEG"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: maker(tmp_path_factory.mktemp(name)) for name, maker in MAKERS.items()}


def context(folder: Path, **engine: Any) -> LoadContext:
    worker = WorkerConfig(id="vision-0", type="vision", model_ref=f"file:{folder}", engine=engine)
    return LoadContext(worker, devices.DEVICE, lambda progress: None)


@pytest.fixture(scope="module")
def backends(folders: dict[str, Path]) -> Iterator[dict[str, ClassifyBackend]]:
    loaded = {name: classify.load(context(folder)) for name, folder in folders.items()}
    yield loaded
    for backend in loaded.values():
        backend.close()


@pytest.fixture(scope="module")
def pipelines(folders: dict[str, Path]) -> dict[str, Any]:
    """Transformers alone on the same files."""
    from transformers import pipeline

    tasks = {"vit": "image-classification"}
    return {
        name: pipeline(tasks.get(name, "zero-shot-image-classification"), model=str(folder), device=devices.NAME)
        for name, folder in folders.items()
    }


async def events(backend: ClassifyBackend | EmbedBackend, image: bytes, **fields: Any) -> list[Event[Any]]:
    request_type = ClassifyRequest if isinstance(backend, ClassifyBackend) else EmbedRequest
    work: Any = backend.execute(parse_object(request_type, {"image": image, **fields}))  # type: ignore[arg-type]
    return [event async for event in ordered(Started.now("job", "model"), work)]


async def labels(backend: ClassifyBackend, image: bytes, **fields: Any) -> list[tuple[str, float]]:
    (output,) = [event.value for event in await events(backend, image, **fields) if isinstance(event, Output)]
    return [(label.label, label.score) for label in output.labels]


def near(found: list[tuple[str, float]], expected: list[dict[str, Any]]) -> None:
    assert [label for label, _ in found] == [answer["label"] for answer in expected]
    assert [score for _, score in found] == pytest.approx([answer["score"] for answer in expected], rel=2e-5, abs=2e-7)


@pytest.mark.parametrize("name", FILES)
async def test_labels_and_scores_are_those_of_the_library_alone(
    name: str, backends: dict[str, ClassifyBackend], pipelines: dict[str, Any]
) -> None:
    with Image.open(io.BytesIO(FILES[name])) as image:
        image.load()
        near(await labels(backends["vit"], FILES[name], top_k=7), pipelines["vit"](image, top_k=7))
        for kind in ("clip", "siglip"):
            expected = pipelines[kind](image, candidate_labels=NAMES)
            near(await labels(backends[kind], FILES[name], labels=NAMES), expected)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
async def test_a_template_is_the_text_around_a_label(
    kind: str, backends: dict[str, ClassifyBackend], pipelines: dict[str, Any]
) -> None:
    template, image = "{}, seen from far away", Image.open(io.BytesIO(FILES["png"]))
    found = await labels(backends[kind], FILES["png"], labels=NAMES, hypothesis_template=template)
    near(found, pipelines[kind](image, candidate_labels=NAMES, hypothesis_template=template))
    assert found != await labels(backends[kind], FILES["png"], labels=NAMES)
    for text in ("{0}", "{.__class__}", "no place", "{} and {}"):
        with pytest.raises(InvalidRequest, match=r"hypothesis_template: must hold \{\} once"):
            await labels(backends[kind], FILES["png"], labels=NAMES, hypothesis_template=text)


async def test_labels_with_braces_are_only_text(backends: dict[str, ClassifyBackend]) -> None:
    odd = ["{}", "{0.__class__}", "%s", "</s>", "🐝"]
    for kind in ("clip", "siglip"):
        assert {label for label, _ in await labels(backends[kind], FILES["png"], labels=odd)} == set(odd)


async def test_the_events_are_narration_labels_metrics_and_end(backends: dict[str, ClassifyBackend]) -> None:
    _, narration, output, metrics, end = await events(backends["vit"], FILES["png"], top_k=3)
    assert isinstance(narration, Narration)
    assert narration.human == "Choosing from 1000 labels"
    assert isinstance(output, Output)
    assert isinstance(output.value, LabelOutput)
    assert len(output.value.labels) == 3
    assert isinstance(metrics, Metrics)
    assert metrics.values["images_per_sec"] > 0
    assert metrics.values["decode_ms"] > 0
    assert metrics.values["vram_bytes"] > 10_000_000
    assert isinstance(end, End)
    assert (end.tokens_out, end.stop_reason) == (3, "COMPLETE")


async def test_a_larger_top_k_returns_all_labels(backends: dict[str, ClassifyBackend]) -> None:
    found = await labels(backends["vit"], FILES["png"], top_k=1000)
    assert sum(score for _, score in found) == pytest.approx(1)
    assert {label for label, _ in found} == {f"kind {n}" for n in range(1000)}
    assert len(await labels(backends["clip"], FILES["png"], labels=NAMES, top_k=1000)) == len(NAMES)
    assert len(await labels(backends["clip"], FILES["png"], labels=NAMES)) == 5


@pytest.mark.parametrize("kind", MAKERS)
async def test_the_request_chooses_the_function_of_the_logits(kind: str, backends: dict[str, ClassifyBackend]) -> None:
    fields: dict[str, Any] = {} if kind == "vit" else {"labels": NAMES}
    found = {
        function: [s for _, s in await labels(backends[kind], FILES["png"], function_to_apply=function, **fields)]
        for function in ("none", "sigmoid", "softmax")
    }
    assert found["sigmoid"] == pytest.approx([1 / (1 + math.exp(-logit)) for logit in found["none"]], abs=1e-8)
    ratio = [math.exp(logit - found["none"][0]) for logit in found["none"]]
    assert [score / found["softmax"][0] for score in found["softmax"]] == pytest.approx(ratio, abs=1e-6)


async def test_scores_of_independent_labels_are_sigmoids(tmp_path: Path) -> None:
    several = random_vit(tmp_path, labels=4, problem_type="multi_label_classification")
    with closing(classify.load(context(several))) as backend:
        assert await labels(backend, FILES["png"]) == await labels(backend, FILES["png"], function_to_apply="sigmoid")


async def test_concurrent_requests_get_their_own_labels(backends: dict[str, ClassifyBackend]) -> None:
    for kind, fields in (("vit", {}), ("clip", {"labels": NAMES}), ("siglip", {"labels": NAMES[:2]})):
        alone = [await labels(backends[kind], file, **fields) for file in FILES.values()]
        together = await asyncio.gather(*(labels(backends[kind], file, **fields) for file in [*FILES.values()] * 3))
        for found, expected in zip(together, alone * 3, strict=True):
            assert dict(found) == pytest.approx(dict(expected), abs=1e-6)


async def test_the_configured_labels_are_the_default(
    backends: dict[str, ClassifyBackend], folders: dict[str, Path]
) -> None:
    found = await labels(backends["clip"], FILES["png"], top_k=100)
    assert {label for label, _ in found} == set(classify.LABELS)
    with closing(classify.load(context(folders["clip"], labels=["hot dog", "not hot dog"]))) as backend:
        assert {label for label, _ in await labels(backend, FILES["png"])} == {"hot dog", "not hot dog"}


@pytest.mark.parametrize("fields", [{"labels": NAMES}, {"hypothesis_template": "{}"}])
async def test_a_model_with_its_own_labels_refuses_others(
    fields: dict[str, Any], backends: dict[str, ClassifyBackend]
) -> None:
    with pytest.raises(InvalidRequest, match=f"{next(iter(fields))}: this model has labels of its own; leave it out"):
        await labels(backends["vit"], FILES["png"], **fields)


async def test_labels_that_are_too_long_are_reported_by_index(backends: dict[str, ClassifyBackend]) -> None:
    with pytest.raises(RequestTooLong) as caught:
        await labels(backends["clip"], FILES["png"], labels=["short", "x" * 70, "also short", "y" * 80])
    assert [(v.field, v.constraint) for v in caught.value.violations] == [
        ("labels[1]", "tokens <= 77"), ("labels[3]", "tokens <= 77"),
    ]  # fmt: skip


async def test_a_broken_file_fails_only_its_own_request(backends: dict[str, ClassifyBackend]) -> None:
    good = [asyncio.create_task(labels(backends["vit"], file)) for file in FILES.values()]
    for data, sentence in ((b"GIF89a", "is not a PNG, JPEG or WebP"), (FILES["large"][:500], "is not a whole JPEG")):
        with pytest.raises(InvalidRequest, match=f"image: {sentence}"):
            await labels(backends["vit"], data)
    assert all(len(found) == 5 for found in await asyncio.gather(*good))


async def test_text_vectors_are_cached_and_the_oldest_dropped(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_encoders, "MAX_CACHED_TEXTS", 4)
    with closing(classify.load(context(folders["clip"]))) as backend:
        model: Any = backend._model
        read: list[int] = []
        whole = model._model.get_text_features

        def counted(input_ids: Any, **inputs: Any) -> Any:
            read.append(len(input_ids))
            return whole(input_ids=input_ids, **inputs)

        monkeypatch.setattr(model._model, "get_text_features", counted)
        first = await labels(backend, FILES["png"], labels=["a", "b", "a"])
        assert await labels(backend, FILES["png"], labels=["a", "b", "a"]) == first
        assert read == [2]
        await labels(backend, FILES["png"], labels=["c", "d", "e", "b"])
        assert len(model._cached_texts) == 4
        assert dict(await labels(backend, FILES["png"], labels=["a", "b"])).keys() == {"a", "b"}
        assert read == [2, 3, 1]


async def test_a_vector_is_that_of_the_library_alone(folders: dict[str, Path], pipelines: dict[str, Any]) -> None:
    import torch

    for kind in ("clip", "siglip"):
        bare = pipelines[kind]
        with closing(embed.load(context(folders[kind]))) as backend:
            for file in FILES.values():
                with Image.open(io.BytesIO(file)) as image, torch.inference_mode():
                    upright = ImageOps.exif_transpose(image).convert("RGB")
                    inputs = bare.image_processor(upright, return_tensors="pt").to(devices.NAME)
                    expected = bare.model.get_image_features(**inputs)
                row = expected.pooler_output[0].cpu().numpy()
                work = ordered(Started.now("job", "model"), backend.execute(EmbedRequest(image=file)))
                result = (await collect(work, embed.SPEC.outputs)).output
                assert result["dim"] == len(row)
                assert result["embeddings"][0] == pytest.approx(row / np.linalg.norm(row), abs=1e-5)
                raw = next(e.value for e in await events(backend, file, normalize=False, encoding="base64")
                           if isinstance(e, Output))  # fmt: skip
                assert struct.unpack(f"<{raw.dim}f", base64.b64decode(raw.embedding)) == pytest.approx(row, rel=1e-4)


@pytest.mark.parametrize("spec", [classify.SPEC, embed.SPEC])
def test_the_long_request_is_an_image_just_below_the_pixel_bound(spec: Any) -> None:
    request = spec.long_request()
    assert len(request.image) < MAX_FILE_BYTES
    with Image.open(io.BytesIO(request.image)) as image:
        assert VisionOptions().max_pixels * 0.95 < image.width * image.height <= VisionOptions().max_pixels


def test_a_classifier_cannot_embed(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigurationError, match="embed is for CLIP and SigLIP; this model classifies"):
        embed.load(context(folders["vit"]))


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = random_vit(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["ViTModel"]}))
    with pytest.raises(ConfigurationError, match="is a model of the type vit, and neither an image classifier nor"):
        classify.load(context(folder))


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
