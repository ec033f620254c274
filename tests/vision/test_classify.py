"""The vision worker's task `classify` on tiny random models, without Ray."""

from __future__ import annotations

import asyncio
import io
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deployments.vision import classify, image_encoders
from deployments.vision.classify import ClassifyBackend
from rbee_serve.errors import InvalidRequest, RequestTooLong
from rbee_serve.events import End, Metrics, Narration, Output
from rbee_serve.outputs import LabelOutput
from tests.vision.encoders import FILES, MAKERS, NAMES, context, events, labels, near
from tests.vision.images import encoded
from tests.vision.tiny_models import random_vit

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("default"),  # for the warnings of torch and transformers
]


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
    await asyncio.to_thread(backends["vit"].memory_bytes)  # as after a load
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


async def test_what_is_left_out_of_an_image_is_narrated(backends: dict[str, ClassifyBackend]) -> None:
    frames = [Image.new("RGBA", (20, 10), color) for color in ((255, 255, 255, 90), (0, 255, 0, 255))]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    found = await events(backends["vit"], data)
    assert [event.human for event in found if isinstance(event, Narration) and event.action == "adjust"] == [
        "Of the animation in image only the first frame is used",
        "The transparent part of image is made black, since what can be seen of it is white",
    ]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
async def test_names_of_control_tokens_in_labels_are_text(kind: str, backends: dict[str, ClassifyBackend]) -> None:
    model: Any = backends[kind]._model
    special = set(model._tokenizer.all_special_ids) - {model._tokenizer.unk_token_id}
    names = [name for name in model._tokenizer.all_special_tokens if len(name) > 1]
    plain, *named = model.label_set(["a", *(f"a {name} a" for name in names)], "{}").texts
    for tokens in named:
        assert len([token for token in tokens if token in special]) <= len([t for t in plain if t in special])
        assert len(tokens) > len(plain) + 2


async def test_labels_that_look_the_same_have_the_same_tokens(backends: dict[str, ClassifyBackend]) -> None:
    model: Any = backends["siglip"]._model
    one, other = model.label_set(["a caf\u00e9", "a\u200b ca\u00adfe\u0301"], None).texts
    assert one == other
    with pytest.raises(InvalidRequest, match=r"labels\[1\]: must not be blank"):
        await labels(backends["clip"], FILES["png"], labels=["a", "\u3000"])
