"""The task `generate` on tiny pipelines with random weights, without Ray."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments import vision_generate
from deployments.latent_colors import LatentColors, palette
from deployments.vision_generate import SPEC, PictureBackend, PictureRequest
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError, InsufficientResources, InvalidRequest
from rbee_serve.events import End, Error, Metrics, Narration, Output, Progress, Started
from rbee_serve.replica.event_stream import ordered
from rbee_serve.replica.loading import warm_up
from rbee_serve.result import collect
from rbee_serve.step_clock import StepClock
from rbee_serve.validation import parse_object
from rbee_serve.worker import Device, LoadContext
from tests.vision import tiny_pipelines
from tests.vision.pictures import encoded, picture

pytest.importorskip("diffusers")
pytestmark = pytest.mark.model
PROMPT = "a cat on a mat"


@pytest.fixture(scope="module", autouse=True)
def _one_thread_and_no_hub() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion, with an adapter in the folder `made` beside it."""
    root = tmp_path_factory.mktemp("sd")
    tiny_pipelines.save_adapter(tiny_pipelines.stable_diffusion(), root / "made")
    return tiny_pipelines.save(tiny_pipelines.stable_diffusion(), root / "pipeline")


def configuration(folder: Path, **engine: Any) -> WorkerConfig:
    return WorkerConfig(id="vision-0", type="vision", task="generate", model_ref=f"file:{folder}", engine=engine)


def load(folder: Path, **engine: Any) -> PictureBackend:
    worker = configuration(folder, **engine)
    vision_generate.check(worker)
    return vision_generate.load(LoadContext(worker, Device("cpu"), lambda progress: None, StepClock(20)))


@pytest.fixture(scope="module")
def backend(folder: Path) -> Iterator[PictureBackend]:
    made = load(folder, lora_modules={"made": f"file:{folder.parent / 'made'}"})
    yield made
    made.close()


def bare(folder: Path) -> Any:
    """The pipeline as anybody would load it."""
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int) -> Any:
    import torch

    return torch.Generator("cpu").manual_seed(seed)


async def events_of(backend: PictureBackend, **fields: Any) -> list[Any]:
    request = parse_object(PictureRequest, {"prompt": PROMPT, "steps": 3, "seed": 7, **fields})
    return [event async for event in backend.execute(request)]


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


def pictures(events: list[Any], *, previews: bool = False) -> list[Any]:
    values = [event.value for event in events if isinstance(event, Output)]
    return [pixels(value.patch) for value in values if value.preview == previews]


FILE = encoded(picture(), "PNG")
MASK = encoded(np.repeat(np.arange(48) >= 24, 32).reshape(48, 32).T, "PNG")
RGB = Image.fromarray(picture())
WHITE_RIGHT = Image.open(io.BytesIO(MASK)).convert("L")


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
    backend: PictureBackend, folder: Path, fields: Any, arguments: Any
) -> None:
    made = pictures(await events_of(backend, num_images=2, **fields))
    pipeline = bare(folder)
    for number, seed in enumerate((7, 8)):
        expected = pipeline(PROMPT, **{"num_inference_steps": 3, **arguments}, generator=seeded(seed)).images[0]
        assert np.array_equal(made[number], np.asarray(expected))
    assert not np.array_equal(made[0], made[1])


async def test_a_picture_to_start_from_and_a_mask_do_what_they_do_in_the_bare_pipelines(
    backend: PictureBackend, folder: Path
) -> None:
    import diffusers

    common = {"num_inference_steps": 4, "strength": 0.5}
    [made] = pictures(await events_of(backend, image=FILE, strength=0.5, steps=4))
    pipeline = diffusers.AutoPipelineForImage2Image.from_pipe(bare(folder))
    assert np.array_equal(made, np.asarray(pipeline(PROMPT, image=RGB, generator=seeded(7), **common).images[0]))
    [made] = pictures(await events_of(backend, image=FILE, mask=MASK, strength=0.5, steps=4))
    pipeline = diffusers.AutoPipelineForInpainting.from_pipe(bare(folder))
    expected = pipeline(
        PROMPT, image=RGB, mask_image=WHITE_RIGHT, width=48, height=32, generator=seeded(7), **common
    ).images[0]
    assert np.array_equal(made, np.asarray(expected))


async def test_of_a_picture_with_a_mask_only_the_white_part_changes(backend: PictureBackend) -> None:
    one, other = [pictures(await events_of(backend, image=FILE, mask=MASK, seed=seed))[0] for seed in (1, 2)]
    changed = np.abs(one.astype(int) - other.astype(int)).sum(axis=(0, 2))
    assert changed[:16].mean() < changed[32:].mean() / 4


async def test_the_size_is_that_of_the_picture_to_start_from_as_far_as_the_model_can(backend: PictureBackend) -> None:
    for size, expected in [((31, 25), (30, 24)), ((640, 320), (64, 32)), ((1, 1), (2, 2))]:
        [made] = pictures(await events_of(backend, image=encoded(picture(*size), "PNG")))
        assert made.shape == (expected[1], expected[0], 3)
    [made] = pictures(await events_of(backend, image=FILE, width=20, height=40))
    assert made.shape == (40, 20, 3)


async def test_events_come_in_order_with_their_numbers(backend: PictureBackend) -> None:
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


async def test_a_seed_that_is_made_up_is_told_and_gives_the_picture_again(backend: PictureBackend) -> None:
    events = await events_of(backend, seed=None)
    again = await events_of(backend, seed=events[-1].seed)
    assert np.array_equal(pictures(events), pictures(again))
    assert events[-1].seed != (await events_of(backend, seed=None))[-1].seed
    assert pictures(await events_of(backend, seed=2**64 - 1, num_images=2))


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
async def test_each_format_comes_as_event_result_and_file(backend: PictureBackend, form: str) -> None:
    [png] = pictures(await events_of(backend))
    events = await events_of(backend, format=form, preview_every=2)
    for event in events:
        if isinstance(event, Output):
            assert Image.open(io.BytesIO(event.value.patch)).format == form.upper()
    [made] = pictures(events)
    assert np.abs(made.astype(int) - png).mean() < (1 if form == "png" else 30)
    request = parse_object(PictureRequest, {"prompt": PROMPT, "steps": 3, "seed": 7, "format": form, "stream": False})
    result = await collect(ordered(Started.now("j", "m"), backend.execute(request)), SPEC.outputs)
    document = vision_generate.document(request, result)
    assert document is not None
    assert document.media_type == f"image/{form}"
    assert np.array_equal(pixels(document.data), made)


async def test_several_pictures_or_no_named_format_are_json(backend: PictureBackend) -> None:
    for fields, count in [({}, 1), ({"num_images": 2, "format": "jpeg"}, 2)]:
        request = parse_object(PictureRequest, {"prompt": PROMPT, "steps": 1, "stream": False, **fields})
        result = await collect(ordered(Started.now("j", "m"), backend.execute(request)), SPEC.outputs)
        assert vision_generate.document(request, result) is None
        assert len(json.loads(result.to_json())["images"]) == count


async def test_a_client_that_leaves_stops_the_work_within_a_step(backend: PictureBackend) -> None:
    [expected] = pictures(await events_of(backend))
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    unet = backend._engine._pipeline.unet
    hook = unet.register_forward_pre_hook(count)
    request = PictureRequest(prompt=PROMPT, steps=100, num_images=8)
    async with aclosing(backend.execute(request)) as events:
        while not isinstance(await anext(events), Progress):
            pass
        seen = passes
    hook.remove()
    assert passes <= seen + 1
    assert np.array_equal(pictures(await events_of(backend)), [expected])


async def test_a_request_that_runs_out_of_memory_fails_alone(backend: PictureBackend) -> None:
    import torch

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError

    [expected] = pictures(await events_of(backend))
    hook = backend._engine._pipeline.vae.decoder.register_forward_pre_hook(fail)
    request = PictureRequest(prompt=PROMPT, steps=2)
    events = [event async for event in ordered(Started.now("j", "m"), backend.execute(request))]
    hook.remove()
    assert isinstance(events[-1], Error)
    assert events[-1].code == "INSUFFICIENT_VRAM"
    assert np.array_equal(pictures(await events_of(backend)), [expected])


async def test_a_picture_that_takes_more_memory_than_is_free_is_refused_before_any_work(
    backend: PictureBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 100 < backend._engine._bytes_per_pixel < 1000
    monkeypatch.setattr(backend._engine, "_bytes_per_pixel", 1e12)
    with pytest.raises(
        InsufficientResources, match=r"32 x 32 pixels takes about 1024000.0 GB to make, and .* are free"
    ):
        await events_of(backend)


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
async def test_what_is_wrong_is_told_by_field(backend: PictureBackend, fields: Any, field: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await events_of(backend, **fields)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert message in caught.value.message


async def test_all_that_is_wrong_is_told_at_once(backend: PictureBackend) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await events_of(backend, width=65, height=41, lora="x")
    assert [violation.field for violation in caught.value.violations] == ["width", "width", "height", "lora"]


async def test_an_adapter_changes_the_picture_and_only_where_it_is_asked_for(
    backend: PictureBackend, folder: Path
) -> None:
    [plain] = pictures(await events_of(backend))
    [adapted] = pictures(await events_of(backend, lora="made"))
    assert not np.array_equal(plain, adapted)
    assert np.array_equal(pictures(await events_of(backend)), [plain])
    pipeline = bare(folder)
    pipeline.load_lora_weights(folder.parent / "made")
    expected = pipeline(PROMPT, num_inference_steps=3, generator=seeded(7)).images[0]
    assert np.array_equal(adapted, np.asarray(expected))
    assert pictures(await events_of(backend, lora="made", image=FILE, mask=MASK))


@pytest.mark.parametrize("kind", ["stable_diffusion", "stable_diffusion_xl", "flux"])
async def test_every_kind_of_pipeline_gives_its_own_pixels_and_previews_that_are_like_them(
    kind: str, tmp_path: Path
) -> None:
    backend = load(tiny_pipelines.save(getattr(tiny_pipelines, kind)(), tmp_path))
    await warm_up(SPEC, backend)
    events = await events_of(backend, steps=20, preview_every=19, width=64, height=48, num_images=4)
    made, previews = pictures(events), pictures(events, previews=True)
    expected = bare(tmp_path)(PROMPT, num_inference_steps=20, width=64, height=48, generator=seeded(7)).images[0]
    assert np.array_equal(made[0], np.asarray(expected))
    small = [np.asarray(Image.fromarray(one).resize(previews[0].shape[1::-1], Image.Resampling.BOX)) for one in made]
    likeness = np.corrcoef([one.reshape(-1) for one in (*previews, *small)])[:4, 4:]
    assert list(likeness.argmax(axis=1)) == [0, 1, 2, 3]
    backend.close()


@pytest.mark.parametrize("as_tokens", [False, True])
def test_the_map_from_latents_to_colours_is_found_where_there_is_one(as_tokens: bool) -> None:
    import torch

    colors = torch.from_numpy(np.asarray(palette(24, 1), float)).permute(2, 0, 1)
    hidden = torch.randn(6, 3, generator=seeded(0)).double()
    grid = torch.einsum("cr,rhw->chw", hidden, colors / 50 - 3)
    latents = (grid.flatten(1).T if as_tokens else grid)[None]
    shown = LatentColors.fitted(latents, palette(24, 1).resize((192, 192), Image.Resampling.NEAREST))
    wide = latents[:, :240] if as_tokens else latents[:, :, :10]
    assert np.array_equal(np.asarray(shown.picture(latents, 1.0)), np.asarray(palette(24, 1)))
    differences = np.asarray(shown.picture(wide, 2.4), float) - np.asarray(palette(24, 1), float)[:10]
    assert np.abs(differences).mean() < 10  # their contrast is another


@pytest.mark.filterwarnings("ignore:.upcast_vae. is deprecated:FutureWarning")
async def test_a_decoder_that_is_stopped_while_it_works_in_another_type_gets_its_own_back(tmp_path: Path) -> None:
    import torch

    backend = load(tiny_pipelines.save(tiny_pipelines.stable_diffusion_xl(), tmp_path), dtype="float16")
    [expected] = pictures(await events_of(backend))
    vae = backend._engine._pipeline.vae
    seen = []

    def fail(*_: Any) -> None:
        seen.append(vae.dtype)
        raise torch.OutOfMemoryError

    hook = vae.decoder.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        await events_of(backend)
    hook.remove()
    assert (seen, vae.dtype) == ([torch.float32], torch.float16)
    assert np.array_equal(pictures(await events_of(backend)), [expected])
    backend.close()


async def test_a_model_that_only_repaints_makes_all_of_a_picture_anew_where_none_is_sent(tmp_path: Path) -> None:
    backend = load(tiny_pipelines.save(tiny_pipelines.inpainting(), tmp_path))
    await warm_up(SPEC, backend)
    assert pictures(await events_of(backend, width=40))[0].shape == (32, 40, 3)
    assert pictures(await events_of(backend, image=FILE, mask=MASK))
    with pytest.raises(InvalidRequest, match="image: is nothing that this model can start from"):
        await events_of(backend, image=FILE)
    backend.close()


async def test_what_a_safety_checker_finds_is_black_and_told(tmp_path: Path) -> None:
    tiny_pipelines.save(tiny_pipelines.stable_diffusion(**tiny_pipelines.strict_checker()), tmp_path)
    backend = load(tmp_path)
    events = await events_of(backend)
    assert not np.any(pictures(events))
    assert [event.action for event in events if isinstance(event, Narration)] == ["generate", "safety"]
    backend.close()
    backend = load(tmp_path, safety_checker=False)
    assert np.any(pictures(await events_of(backend)))
    backend.close()


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"_class_name": ["pipeline", "MyPipeline"]}, "which diffusers does not have"),
        ({"_class_name": "OtherPipeline"}, "is a 'OtherPipeline', which diffusers does not have"),
        ({"_class_name": "UNet2DConditionModel"}, "which diffusers does not have"),
        ({"_class_name": "DDPMPipeline"}, "a DDPMPipeline takes no callback_on_step_end"),
        ({"unet": ["my_unet", "MyUNet"]}, "takes its unet from 'my_unet', which is neither diffusers nor transformers"),
        ({"tokenizer": ["os", "PathLike"]}, "takes its tokenizer from 'os'"),
    ],
)
def test_a_model_that_would_run_its_own_code_is_refused(copy: Path, index: Any, message: str) -> None:
    (copy / "pipeline.py").write_text("raise SystemExit('this must not run')")
    (copy / "unet" / "my_unet.py").write_text("raise SystemExit('this must not run')")
    edit(copy / "model_index.json", **index)
    with pytest.raises(ConfigurationError, match=f"model_ref: .*{message}"):
        load(copy)


def test_a_part_that_is_a_pickle_is_refused_and_so_is_a_folder_that_is_no_pipeline(copy: Path) -> None:
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ConfigurationError, match=r"diffusion_pytorch_model.bin may be a pickle"):
        load(copy)
    (copy / "model_index.json").unlink()
    with pytest.raises(ConfigurationError, match=r"has no model_index.json, so it is not a pipeline of diffusers"):
        load(copy)


@pytest.fixture
def half(copy: Path) -> Path:
    """The same, with half of its parts in half precision by name."""
    for file in [*copy.glob("unet/*.safetensors"), *copy.glob("vae/*.safetensors")]:
        file.rename(file.with_suffix(".fp16.safetensors"))
    return copy


async def test_weights_that_are_there_in_half_precision_only_are_found(half: Path) -> None:
    backend = load(half, max_side=16, steps=2)
    events = await events_of(backend, steps=None)
    assert pictures(events)[0].shape == (16, 16, 3)
    assert events[1] == Progress(step=1, total=2)
    backend.close()


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"max_size": 3}, r"engine.max_size: unknown key"),
        ({"dtype": "int8"}, r"engine.dtype: "),
        ({"max_side": 4}, r"engine.max_side: "),
    ],
)
def test_a_wrong_configuration_is_told_before_anything_starts(folder: Path, engine: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        vision_generate.check(configuration(folder, **engine))
    with pytest.raises(ConfigurationError, match=r"model_ref: .* does not exist"):
        vision_generate.check(configuration(folder / "nowhere"))
