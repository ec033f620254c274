"""Requests to the task `generate`, on a tiny pipeline with random weights, without Ray."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.torch_runtime.cuda_graphs import GraphedForward
from deployments.vision import generate
from deployments.vision.diffusers_engine import _blocks
from deployments.vision.generate import SPEC, ImageBackend, ImageRequest
from rbee_serve.errors import InsufficientResources, InsufficientVram, InvalidRequest
from rbee_serve.events import End, Error, Metrics, Narration, Output, Progress, Started
from rbee_serve.replica.event_stream import ordered
from rbee_serve.result import collect
from rbee_serve.validation.parse import parse_object
from tests import devices
from tests.torch_runtime.graph_recorder import Recorder
from tests.vision.generation import (
    FILE,
    MASK,
    PROMPT,
    RGB,
    WHITE_RIGHT,
    bare,
    events_of,
    images_of,
    load,
    pixels,
    same,
    seeded,
)
from tests.vision.images import encoded, sample_image

pytest.importorskip("diffusers")
pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread_and_no_hub")]


@pytest.fixture(scope="module")
def backend(diffusion: Path) -> Iterator[ImageBackend]:
    made = load(diffusion, lora_modules={"made": f"file:{diffusion.parent / 'made'}"})
    yield made
    made.close()


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({}, {}),
        ({"width": 48, "height": 24}, {"width": 48, "height": 24}),
        ({"negative_prompt": "a dog", "guidance_scale": 3.0}, {"negative_prompt": "a dog", "guidance_scale": 3.0}),
        ({"guidance_scale": 0.0, "steps": 5, "preview_every": 1}, {"guidance_scale": 0.0, "num_inference_steps": 5}),
    ],
)
async def test_the_same_seed_gives_the_pixels_of_the_bare_pipeline(
    backend: ImageBackend, diffusion: Path, fields: Any, arguments: Any
) -> None:
    made = images_of(await events_of(backend, num_images=2, **fields))
    pipeline = bare(diffusion)
    for number, seed in enumerate((7, 8)):
        expected = pipeline(PROMPT, **{"num_inference_steps": 3, **arguments}, generator=seeded(seed)).images[0]
        assert same(made[number], expected)
    assert not np.array_equal(made[0], made[1])


async def test_image_to_image_and_inpainting_give_the_pixels_of_the_bare_pipelines(
    backend: ImageBackend, diffusion: Path
) -> None:
    import diffusers

    common = {"num_inference_steps": 4, "strength": 0.5}
    [made] = images_of(await events_of(backend, image=FILE, strength=0.5, steps=4))
    pipeline = diffusers.AutoPipelineForImage2Image.from_pipe(bare(diffusion))
    assert same(made, pipeline(PROMPT, image=RGB, generator=seeded(7), **common).images[0])
    [made] = images_of(await events_of(backend, image=FILE, mask=MASK, strength=0.5, steps=4))
    pipeline = diffusers.AutoPipelineForInpainting.from_pipe(bare(diffusion))
    expected = pipeline(
        PROMPT, image=RGB, mask_image=WHITE_RIGHT, width=48, height=32, generator=seeded(7), **common
    ).images[0]
    assert same(made[:, 24:], np.asarray(expected)[:, 24:])
    assert np.array_equal(made[:, :24], sample_image()[:, :24])


async def test_only_the_white_part_of_the_mask_changes(backend: ImageBackend) -> None:
    one, other = [images_of(await events_of(backend, image=FILE, mask=MASK, seed=seed))[0] for seed in (1, 2)]
    changed = np.abs(one.astype(int) - other.astype(int)).sum(axis=(0, 2))
    assert not changed[:24].any()
    assert changed[24:].all()


async def test_the_default_size_is_that_of_the_image_within_the_limits(backend: ImageBackend) -> None:
    for size, expected in [((31, 25), (31, 25)), ((640, 320), (64, 32)), ((127, 3), (64, 2)), ((1, 1), (1, 1))]:
        [made] = images_of(await events_of(backend, image=encoded(sample_image(*size), "PNG")))
        assert made.shape == (expected[1], expected[0], 3)
    [made] = images_of(await events_of(backend, image=FILE, width=20, height=40))
    assert made.shape == (40, 20, 3)


async def test_events_are_ordered_and_numbered(backend: ImageBackend) -> None:
    events = await events_of(backend, num_images=2, steps=4, preview_every=2)
    first, second = Progress(step=1, total=8), Progress(step=2, total=8)
    assert isinstance(events[0], Narration)
    assert events[1:3] == [first, second]
    assert [event for event in events if isinstance(event, Progress)] == [
        Progress(step=n, total=8) for n in range(1, 9)
    ]
    outputs = [event.value for event in events if isinstance(event, Output)]
    assert [(value.preview, value.step) for value in outputs] == [(True, 2), (False, None)] * 2
    assert [value.i for value in outputs] == [0, 1, 2, 3]
    metrics, end = events[-2:]
    assert isinstance(metrics, Metrics)
    assert isinstance(end, End)
    assert metrics.values["steps"] == 8
    assert {"steps_per_sec", "time_to_first_image_ms", "vram_bytes"} < set(metrics.values)
    assert (end.tokens_out, end.stop_reason, end.seed) == (2, "COMPLETE", 7)


async def test_a_random_seed_is_returned_and_reproduces_the_image(backend: ImageBackend) -> None:
    events = await events_of(backend, seed=None)
    again = await events_of(backend, seed=events[-1].seed)
    assert np.array_equal(images_of(events), images_of(again))
    assert events[-1].seed != (await events_of(backend, seed=None))[-1].seed
    assert images_of(await events_of(backend, seed=2**64 - 1, num_images=2))


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
async def test_each_format_works_as_event_result_and_file(backend: ImageBackend, form: str) -> None:
    [png] = images_of(await events_of(backend))
    events = await events_of(backend, format=form, preview_every=2)
    for event in events:
        if isinstance(event, Output):
            assert Image.open(io.BytesIO(event.value.patch)).format == form.upper()
    [made] = images_of(events)
    assert np.abs(made.astype(int) - png).mean() < (1 if form == "png" else 30)
    request = parse_object(ImageRequest, {"prompt": PROMPT, "steps": 3, "seed": 7, "format": form, "stream": False})
    result = await collect(ordered(Started.now("j", "m"), backend.execute(request)), SPEC.outputs)
    encoded_result = generate.encode_result(request, result)
    assert encoded_result is not None
    assert encoded_result.media_type == f"image/{form}"
    assert np.array_equal(pixels(encoded_result.data), made)


async def test_several_images_or_no_given_format_are_json(backend: ImageBackend) -> None:
    for fields, count in [({}, 1), ({"num_images": 2, "format": "jpeg"}, 2)]:
        request = parse_object(ImageRequest, {"prompt": PROMPT, "steps": 1, "stream": False, **fields})
        result = await collect(ordered(Started.now("j", "m"), backend.execute(request)), SPEC.outputs)
        assert generate.encode_result(request, result) is None
        assert len(json.loads(result.to_json())["images"]) == count


async def test_closing_the_stream_stops_the_work_within_a_step(backend: ImageBackend) -> None:
    [expected] = images_of(await events_of(backend))
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    unet = backend._engine._pipeline.unet
    hook = unet.register_forward_pre_hook(count)
    request = ImageRequest(prompt=PROMPT, steps=100, num_images=8)
    async with aclosing(backend.execute(request)) as events:
        while not isinstance(await anext(events), Progress):
            pass
        seen = passes
    hook.remove()
    assert passes <= seen + 1
    assert np.array_equal(images_of(await events_of(backend)), [expected])


@pytest.mark.skipif(devices.ON_GPU, reason="on a GPU layers report no steps")
def test_only_layers_within_large_blocks_of_the_denoiser_report_steps(backend: ImageBackend) -> None:
    import torch

    unet = backend._engine._pipeline.unet
    outer = {*unet.down_blocks, *unet.mid_block.attentions, *unet.mid_block.resnets, *unet.up_blocks}
    assert set(_blocks(unet, 10**6)) == outer
    lists = [part for part in unet.modules() if isinstance(part, torch.nn.ModuleList)]
    assert set(_blocks(unet, 0)) == {block for part in lists for block in part}
    hooked = {part for part in unet.modules() if part._forward_pre_hooks}
    assert outer <= hooked < {*_blocks(unet, 0)}
    vae = backend._engine._pipeline.vae
    assert all(layer._forward_pre_hooks for block in vae.decoder.up_blocks for layer in block.resnets)


async def test_running_out_of_memory_fails_only_its_own_request(backend: ImageBackend) -> None:
    import torch

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError

    [expected] = images_of(await events_of(backend))
    hook = backend._engine._pipeline.vae.decoder.register_forward_pre_hook(fail)
    request = ImageRequest(prompt=PROMPT, steps=2)
    events = [event async for event in ordered(Started.now("j", "m"), backend.execute(request))]
    hook.remove()
    assert isinstance(events[-1], Error)
    assert events[-1].code == "INSUFFICIENT_VRAM"
    assert np.array_equal(images_of(await events_of(backend)), [expected])


async def test_an_image_that_needs_more_memory_than_is_free_is_refused_before_any_work(
    backend: ImageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 100 < backend._engine.memory._bytes_per_pixel < 1000
    monkeypatch.setattr(backend._engine.memory, "_bytes_per_pixel", 1e12)
    with pytest.raises(
        (InsufficientResources, InsufficientVram),
        match=r"32 x 32 pixels takes about 1024000.0 GB to generate, and .* are free",
    ):
        await events_of(backend)


async def test_an_image_beyond_what_memory_can_hold_is_a_violation_and_defaults_stay_within_it(
    backend: ImageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = backend._engine.limits
    monkeypatch.setattr(limits, "side", limits.side)
    monkeypatch.setattr(limits, "max_pixels", None)
    limits.restrict(600)
    with pytest.raises(InvalidRequest) as caught:
        await events_of(backend, width=32, height=32)
    assert not caught.value.retriable
    assert "width: times height must be at most 600 to fit into memory, such as 24 x 24" in str(caught.value)
    [made] = images_of(await events_of(backend))
    assert made.shape == (24, 24, 3)
    for size in [(640, 320), (31, 25), (127, 3)]:
        [made] = images_of(await events_of(backend, image=encoded(sample_image(*size), "PNG")))
        assert made.shape[0] * made.shape[1] <= 600
        assert made.shape[1] / made.shape[0] == pytest.approx(size[0] / size[1], rel=0.3)
    assert images_of(await events_of(backend, image=FILE, mask=MASK))


async def test_graphs_are_dropped_for_an_image_that_does_not_fit_beside_them(
    backend: ImageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    engine = backend._engine
    denoiser = engine._pipeline.unet
    graphed = GraphedForward(denoiser.forward, partial(engine._record, recorder))
    monkeypatch.setattr(denoiser, "forward", graphed)
    monkeypatch.setattr(engine, "_graphed_denoiser", graphed)
    monkeypatch.setattr(engine.memory, "fits_beside_graphs", lambda size: size != (48, 24))
    plain = images_of(await events_of(backend))
    assert recorder.replayed > 0
    assert any(graphed._replays.values())
    await events_of(backend, width=48, height=24)
    assert list(graphed._replays.values()) == [None]
    assert same(images_of(await events_of(backend)), plain)
    assert any(graphed._replays.values())


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"prompt": ""}, "prompt", "empty"),
        ({"width": 33}, "width", "must be a multiple of 2 with this model, such as 32"),
        ({"height": 66}, "height", "must be at most 64 with this model"),
        ({"width": 2050}, "width", "must be at most 2048"),
        ({"steps": 0}, "steps", "at least 1"),
        ({"steps": 151}, "steps", "at most 150"),
        ({"num_images": 9}, "num_images", "at most 8"),
        ({"guidance_scale": 51.0}, "guidance_scale", "at most 50"),
        ({"seed": 2**64}, "seed", "at most"),
        ({"format": "gif"}, "format", "must be one of"),
        ({"preview_every": 1, "stream": False}, "preview_every", "needs stream to be true"),
        ({"strength": 0.5}, "strength", "needs an image to start from"),
        ({"mask": MASK}, "mask", "needs an image to start from"),
        ({"image": FILE, "strength": 0.2}, "strength", "leaves none of 3 steps"),
        ({"image": FILE, "steps": 1}, "strength", "leaves none of 1 steps"),
        ({"image": b"GIF89a"}, "image", "is not a PNG, JPEG or WebP file"),
        ({"image": FILE, "mask": FILE[:50]}, "mask", "cannot be decoded"),
        ({"lora": "other"}, "lora", "no such adapter; configured are: made"),
        ({"size": 1}, "size", "not a field"),
    ],
)
async def test_each_violation_is_reported_by_field(
    backend: ImageBackend, fields: Any, field: str, message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await events_of(backend, **fields)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert message in caught.value.message


async def test_all_violations_are_reported_at_once(backend: ImageBackend) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await events_of(backend, width=65, height=41, lora="x")
    assert [violation.field for violation in caught.value.violations] == ["width", "width", "height", "lora"]


async def test_an_adapter_changes_the_image_only_where_it_is_requested(backend: ImageBackend, diffusion: Path) -> None:
    [plain] = images_of(await events_of(backend))
    [adapted] = images_of(await events_of(backend, lora="made"))
    assert not np.array_equal(plain, adapted)
    assert np.array_equal(images_of(await events_of(backend)), [plain])
    pipeline = bare(diffusion)
    pipeline.load_lora_weights(diffusion.parent / "made")
    expected = pipeline(PROMPT, num_inference_steps=3, generator=seeded(7)).images[0]
    assert same(adapted, expected)
    assert images_of(await events_of(backend, lora="made", image=FILE, mask=MASK))
