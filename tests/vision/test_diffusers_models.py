"""The models that the task `generate` accepts and refuses, on tiny pipelines with random weights, without Ray."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.vision import generate
from deployments.vision.generate import SPEC
from deployments.vision.latent_preview import LatentPreview, palette
from rbee_serve.errors import ConfigurationError, InvalidRequest
from rbee_serve.events import Narration, Progress
from rbee_serve.replica.loading import warm_up
from tests.vision import tiny_pipelines
from tests.vision.generation import (
    FILE,
    MASK,
    PROMPT,
    bare,
    configuration,
    events_of,
    images_of,
    load,
    same,
    seeded,
)

pytest.importorskip("diffusers")
pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread_and_no_hub")]


@pytest.mark.parametrize("kind", ["stable_diffusion", "stable_diffusion_xl", "flux"])
async def test_every_kind_of_pipeline_gives_its_own_pixels_and_similar_previews(kind: str, tmp_path: Path) -> None:
    backend = load(tiny_pipelines.save(getattr(tiny_pipelines, kind)(), tmp_path))
    await warm_up(SPEC, backend)
    events = await events_of(backend, steps=20, preview_every=19, width=64, height=48, num_images=4)
    made, previews = images_of(events), images_of(events, previews=True)
    expected = bare(tmp_path)(PROMPT, num_inference_steps=20, width=64, height=48, generator=seeded(7)).images[0]
    assert same(made[0], expected)
    small = [np.asarray(Image.fromarray(one).resize(previews[0].shape[1::-1], Image.Resampling.BOX)) for one in made]
    likeness = np.corrcoef([one.reshape(-1) for one in (*previews, *small)])[:4, 4:]
    assert list(likeness.argmax(axis=1)) == [0, 1, 2, 3]
    backend.close()


@pytest.mark.parametrize("as_tokens", [False, True])
def test_the_linear_map_from_latents_to_colours_is_recovered(as_tokens: bool) -> None:
    import torch

    colors = torch.from_numpy(np.asarray(palette(24, 1), float)).permute(2, 0, 1)
    hidden = torch.randn(6, 3, generator=seeded(0)).double()
    grid = torch.einsum("cr,rhw->chw", hidden, colors / 50 - 3)
    latents = (grid.flatten(1).T if as_tokens else grid)[None]
    preview = LatentPreview.fitted(latents, palette(24, 1).resize((192, 192), Image.Resampling.NEAREST))
    wide = latents[:, :240] if as_tokens else latents[:, :, :10]
    assert np.array_equal(np.asarray(preview.image(latents, 1.0)), np.asarray(palette(24, 1)))
    differences = np.asarray(preview.image(wide, 2.4), float) - np.asarray(palette(24, 1), float)[:10]
    assert np.abs(differences).mean() < 10  # their contrast is different


@pytest.mark.filterwarnings("ignore:.upcast_vae. is deprecated:FutureWarning")
async def test_a_decoder_that_fails_while_converted_gets_its_dtype_back(tmp_path: Path) -> None:
    import torch

    backend = load(tiny_pipelines.save(tiny_pipelines.stable_diffusion_xl(), tmp_path), dtype="float16")
    [expected] = images_of(await events_of(backend))
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
    assert np.array_equal(images_of(await events_of(backend)), [expected])
    backend.close()


async def test_an_inpainting_model_generates_the_whole_image_where_none_is_sent(tmp_path: Path) -> None:
    backend = load(tiny_pipelines.save(tiny_pipelines.inpainting(), tmp_path))
    await warm_up(SPEC, backend)
    assert images_of(await events_of(backend, width=40))[0].shape == (32, 40, 3)
    assert images_of(await events_of(backend, image=FILE, mask=MASK))
    with pytest.raises(InvalidRequest, match="image: is nothing that this model can start from"):
        await events_of(backend, image=FILE)
    backend.close()


@pytest.mark.parametrize("part", ["vae", "unet"])
@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [("float16", "dtype to bfloat16"), ("bfloat16", "dtype to float32"), ("float32", "choose another model")],
)
def test_a_model_whose_images_are_black_is_refused_at_the_load(
    part: str, dtype: str, remedy: str, tmp_path: Path
) -> None:
    folder = tiny_pipelines.save(tiny_pipelines.overflowing(part), tmp_path)
    with pytest.raises(ConfigurationError, match=f"generates no image in {dtype}, .*{remedy}"):
        load(folder, dtype=dtype)


async def test_an_unsafe_image_is_black_and_narrated(tmp_path: Path) -> None:
    tiny_pipelines.save(tiny_pipelines.stable_diffusion(**tiny_pipelines.strict_checker()), tmp_path)
    backend = load(tmp_path)
    events = await events_of(backend)
    assert not np.any(images_of(events))
    assert [event.action for event in events if isinstance(event, Narration)] == ["generate", "safety"]
    backend.close()
    backend = load(tmp_path, safety_checker=False)
    assert np.any(images_of(await events_of(backend)))
    backend.close()


@pytest.fixture
def copy(diffusion: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(diffusion, tmp_path / "copy"))


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
def test_a_model_with_code_of_its_own_is_refused(copy: Path, index: Any, message: str) -> None:
    (copy / "pipeline.py").write_text("raise SystemExit('this must not run')")
    (copy / "unet" / "my_unet.py").write_text("raise SystemExit('this must not run')")
    edit(copy / "model_index.json", **index)
    with pytest.raises(ConfigurationError, match=f"model_ref: .*{message}"):
        load(copy)


def test_a_pickle_and_a_folder_without_a_pipeline_are_refused(copy: Path) -> None:
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ConfigurationError, match=r"diffusion_pytorch_model.bin may be a pickle"):
        load(copy)
    (copy / "model_index.json").unlink()
    with pytest.raises(ConfigurationError, match=r"has no model_index.json, so it is not a pipeline of diffusers"):
        load(copy)


@pytest.fixture
def half(copy: Path) -> Path:
    """The same, with the weights of two parts named as half precision."""
    for file in [*copy.glob("unet/*.safetensors"), *copy.glob("vae/*.safetensors")]:
        file.rename(file.with_suffix(".fp16.safetensors"))
    return copy


async def test_weights_in_half_precision_only_are_found(half: Path) -> None:
    backend = load(half, max_side=16, steps=2)
    events = await events_of(backend, steps=None)
    assert images_of(events)[0].shape == (16, 16, 3)
    assert events[1] == Progress(step=1, total=2)
    backend.close()


@pytest.mark.parametrize(("dtype", "is_variant"), [("float16", True), ("auto", False), ("bfloat16", False)])
def test_of_two_precisions_the_one_for_the_dtype_is_loaded(copy: Path, dtype: str, is_variant: bool) -> None:
    variant = tiny_pipelines.stable_diffusion()
    variant.unet.conv_in.weight.data.fill_(0.25)
    variant.save_pretrained(copy, variant="fp16", safe_serialization=True)
    backend = load(copy, dtype=dtype)
    weights = backend._engine._pipeline.unet.conv_in.weight
    assert bool((weights == 0.25).all()) == is_variant
    backend.close()


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"max_size": 3}, r"engine.max_size: unknown key"),
        ({"dtype": "int8"}, r"engine.dtype: "),
        ({"max_side": 4}, r"engine.max_side: "),
    ],
)
def test_a_wrong_configuration_is_reported_before_anything_starts(diffusion: Path, engine: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        generate.check(configuration(diffusion, **engine))
    with pytest.raises(ConfigurationError, match=r"model_ref: .* does not exist"):
        generate.check(configuration(diffusion / "nowhere"))
