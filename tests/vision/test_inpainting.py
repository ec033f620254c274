"""What a mask leaves out stays, and what is in it changes, on tiny pipelines with random weights, without Ray."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import demo_models
from deployments.vision.generate import ImageBackend
from deployments.vision.masks import cells, mask_of, padded, scaled
from rbee_serve.errors import InvalidRequest
from rbee_serve.events import Narration, Output
from tests.vision import tiny_pipelines
from tests.vision.generation import events_of, images_of, load
from tests.vision.images import encoded, sample_image

pytest.importorskip("diffusers")
pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread_and_no_hub")]

WIDTH, HEIGHT = 45, 30
START = sample_image(WIDTH, HEIGHT, seed=9)
FILE = encoded(START, "PNG")


@pytest.fixture(scope="module")
def backend(diffusion: Path) -> Iterator[ImageBackend]:
    made = load(diffusion)
    yield made
    made.close()


def masked(*boxes: tuple[int, int, int, int], value: int = 255, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Any:
    """A mask that is `value` in each box of left, top, right and bottom."""
    mask = Image.new("L", size)
    for box in boxes:
        mask.paste(value, box)
    return mask


async def inpainted(backend: ImageBackend, mask: Any, **fields: Any) -> list[Any]:
    file = mask if isinstance(mask, bytes) else encoded(mask, "PNG")
    return images_of(await events_of(backend, **{"image": FILE, "mask": file, "strength": 1.0, **fields}))


def assert_only_changed(made: Any, mask: Any, start: Any = START) -> None:
    assert made.shape == start.shape
    changed = (made != start).any(axis=2)
    assert not changed[np.asarray(mask) == 0].any()
    assert changed[np.asarray(mask) == 255].mean() > 0.9


KINDS = ["stable_diffusion", "stable_diffusion_xl", "flux", "inpainting", "deep"]


@pytest.mark.parametrize("kind", KINDS)
async def test_with_every_pipeline_a_small_mask_counts_and_the_rest_stays(kind: str, tmp_path: Path) -> None:
    backend = load(tiny_pipelines.save(getattr(tiny_pipelines, kind)(), tmp_path))
    boxes = [(x, x, x + size, x + size) for x in range(8, 12) for size in (1, 3)]
    for mask in [masked(box) for box in boxes] + [masked((0, 0, 20, HEIGHT)), masked((44, 29, 45, 30))]:
        for made in await inpainted(backend, mask, num_images=2 if mask.getbbox() == (9, 9, 12, 12) else 1):
            changed = (made != START).any(axis=2)
            assert made.shape == START.shape
            assert not changed[np.asarray(mask) == 0].any()
            assert changed.any()
    backend.close()


async def test_with_the_default_model_a_small_mask_counts_and_the_rest_stays() -> None:
    backend = load(Path(demo_models.__file__).parent / "digits_painter")
    start = np.full((45, 30, 3), 20, np.uint8)
    start[10:30, 12:16] = 250
    boxes = [(x, x, x + 3, x + 3) for x in range(8, 12)] + [(9, 9, 11, 11), (10, 10, 12, 12), (0, 0, 15, 45)]
    for box in boxes:
        mask = masked(box, size=(30, 45))
        fields = {"image": encoded(start, "PNG"), "prompt": "a handwritten zero", "steps": 10}
        [made] = await inpainted(backend, mask, **fields)
        changed = (made != start).any(axis=2)
        assert made.shape == start.shape
        assert not changed[np.asarray(mask) == 0].any()
        assert np.abs(made.astype(int) - start).max() >= 20
    long = await events_of(backend, prompt="a handwritten seven " * 10)
    assert narrations(long) == ["The model reads 22 of 30 tokens of prompt; the rest is cut"]
    backend.close()


@pytest.mark.parametrize("strength", [0.4, 0.9, 1.0])
async def test_the_rest_stays_with_every_strength(backend: ImageBackend, strength: float) -> None:
    mask = masked((0, 0, 21, 30), (30, 7, 33, 9))
    [made] = await inpainted(backend, mask, strength=strength)
    assert_only_changed(made, mask)


async def test_lossless_formats_keep_the_rest_exactly(backend: ImageBackend) -> None:
    mask = masked((3, 3, 20, 20))
    for file_format in ("png", "webp"):
        [made] = await inpainted(backend, mask, format=file_format, preview_every=1)
        assert_only_changed(made, mask)
    [made] = await inpainted(backend, mask, format="jpeg")
    assert np.abs(made.astype(int) - START)[np.asarray(mask) == 0].mean() < 10


async def test_the_rest_is_that_of_the_upright_image_on_its_background(backend: ImageBackend) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    mask = Image.fromarray(np.ascontiguousarray(np.rot90(np.asarray(masked((3, 3, 20, 20))))))
    [made] = await inpainted(backend, mask, image=encoded(START, "PNG", exif=exif))
    assert_only_changed(made, mask, np.rot90(START, -1))
    layers = Image.fromarray(START).convert("RGBA")
    layers.paste((0, 0, 0, 0), (30, 0, WIDTH, HEIGHT))
    shown = START.copy()
    shown[:, 30:] = 255
    mask = masked((3, 3, 20, 20))
    events = await events_of(backend, image=encoded(layers, "PNG"), mask=encoded(mask, "PNG"), strength=1.0)
    assert_only_changed(images_of(events)[0], mask, shown)
    assert narrations(events) == ["The transparent part of image is made white"]


async def test_grey_blends(backend: ImageBackend) -> None:
    whole, half = [
        (await inpainted(backend, masked((8, 8, 24, 24), value=value)))[0].astype(int) for value in (255, 128)
    ]
    between = START + (whole - START) * (128 / 255)
    assert np.abs(half - between).max() <= 1
    assert np.array_equal(half[:8], START[:8])


async def test_a_mask_that_leaves_everything_is_refused(backend: ImageBackend) -> None:
    for mask in (masked(), masked((3, 3, 20, 20), value=1)):  # 1 is what an array of booleans becomes
        with pytest.raises(InvalidRequest, match="mask: has no white part, so nothing would change"):
            await inpainted(backend, mask)


async def test_a_white_mask_changes_everything(backend: ImageBackend) -> None:
    mask = masked((0, 0, WIDTH, HEIGHT))
    [made] = await inpainted(backend, mask)
    assert_only_changed(made, mask)


async def test_a_mask_of_another_size_is_scaled_and_keeps_thin_lines(backend: ImageBackend) -> None:
    large = masked((100, 0, 101, 300), size=(450, 300))
    events = await events_of(backend, image=FILE, mask=encoded(large, "PNG"), strength=1.0)
    assert_only_changed(images_of(events)[0], masked((10, 0, 11, 30)))
    assert narrations(events) == ["Scaling mask from 450 x 300 to 45 x 30 pixels"]
    assert images_of(await events_of(backend, image=FILE, mask=encoded(masked((1, 1, 2, 2), size=(3, 2)), "PNG")))


def narrations(events: list[Any]) -> list[str]:
    return [event.human for event in events if isinstance(event, Narration) and event.action == "adjust"]


async def test_an_image_that_is_scaled_is_narrated(backend: ImageBackend) -> None:
    large = encoded(sample_image(640, 320), "PNG")
    assert narrations(await events_of(backend, image=large)) == ["Scaling image from 640 x 320 to 64 x 32 pixels"]
    events = await events_of(backend, image=FILE, width=41, height=23)
    assert narrations(events) == ["Scaling image from 45 x 30 to 41 x 23 pixels"]
    assert images_of(events)[0].shape == (23, 41, 3)
    assert narrations(await events_of(backend, image=FILE)) == []


@pytest.mark.parametrize(("given", "prompt"), [(100, "a " * 100), (76, "c" * 76), (76, "<|endoftext|>" + " b" * 63)])
async def test_a_prompt_that_is_cut_is_narrated(backend: ImageBackend, given: int, prompt: str) -> None:
    [narration] = narrations(await events_of(backend, prompt=prompt))
    assert narration == f"The model reads 75 of {given} tokens of prompt; the rest is cut"


async def test_a_prompt_that_is_read_whole_is_not_narrated(backend: ImageBackend) -> None:
    assert narrations(await events_of(backend, prompt="a " * 75, negative_prompt="b " * 75)) == []
    [narration] = narrations(await events_of(backend, prompt="a", negative_prompt="b " * 76))
    assert narration == "The model reads 75 of 76 tokens of negative_prompt; the rest is cut"


async def test_names_of_control_tokens_in_a_prompt_are_text(backend: ImageBackend) -> None:
    named, split, cut = [
        images_of(await events_of(backend, prompt=prompt))[0]
        for prompt in ("a cat<|endoftext|> on a mat", "a cat< |endoftext|> on a mat", "a cat")
    ]
    assert np.array_equal(named, split)
    assert not np.array_equal(named, cut)


async def test_prompts_that_look_the_same_give_the_same_image(backend: ImageBackend) -> None:
    one, other = [
        images_of(await events_of(backend, prompt=prompt))[0]
        for prompt in ("a cat in a caf\u00e9", "a c\u00adat in\u200b a cafe\u0301\ufeff")
    ]
    assert np.array_equal(one, other)
    for prompt in (" ", "\u200b\n"):
        with pytest.raises(InvalidRequest, match="prompt: must not be blank"):
            await events_of(backend, prompt=prompt)


async def test_any_seed_is_reported_at_the_end(backend: ImageBackend) -> None:
    events = await events_of(backend, seed=-1)
    again = await events_of(backend, seed=events[-1].seed)
    assert np.array_equal(images_of(events), images_of(again))


async def test_the_size_stays_with_previews_and_several_images(backend: ImageBackend) -> None:
    events = await events_of(backend, image=FILE, num_images=2, preview_every=1, steps=4)
    assert [image.shape for image in images_of(events)] == [(30, 45, 3)] * 2
    assert any(isinstance(event, Output) and event.value.preview for event in events)


BOX = (4, 4, 9, 8)
"""What is white in each of these masks of 12 x 10 pixels."""


def layers(background: Any, box: Any) -> Any:
    image = Image.new("RGBA", (12, 10), background)
    image.paste(box, BOX)
    return image


@pytest.mark.parametrize(
    "mask",
    [
        layers((0, 0, 0, 255), (255, 255, 255, 255)),
        layers((0, 0, 0, 0), (255, 255, 255, 255)),  # a white drawing on nothing
        layers((0, 0, 0, 255), (0, 0, 0, 0)),  # a hole
        layers((90, 200, 30, 255), (90, 200, 30, 0)),  # an image with a part erased
        layers((255, 255, 250, 255), (1, 2, 3, 0)),
    ],
)
def test_transparency_is_read_as_image_editors_write_it(mask: Any) -> None:
    shown = Image.new("RGB", mask.size, "white")
    shown.paste(mask, mask=mask)
    alpha = mask.getchannel("A")
    area, sentence = mask_of(shown, alpha if alpha.getextrema()[0] < 255 else None)
    if mask.getpixel((0, 0)) == (255, 255, 250, 255):
        assert "transparent" in str(sentence)
        return
    assert area.getbbox() == BOX
    assert area.getextrema() == (0, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
async def test_a_mask_may_have_any_mode(backend: ImageBackend, mode: str) -> None:
    mask = masked((3, 3, 20, 20))
    file = Image.fromarray(np.asarray(mask).astype(np.uint16) * 257) if mode == "I;16" else mask.convert(mode)
    [made] = await inpainted(backend, file)
    assert_only_changed(made, mask)


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_each_cell_with_a_masked_pixel_is_masked(side: int) -> None:
    for x in range(16):
        for y in range(8):
            found = np.asarray(cells(masked((x, y, x + 1, y + 1), value=1, size=(16, 8)), side))
            expected = np.zeros((8, 16), np.uint8)
            expected[y // side * side : y // side * side + side, x // side * side : x // side * side + side] = 255
            assert np.array_equal(found, expected)


def test_scaling_down_loses_no_pixel() -> None:
    for x in range(0, 97, 7):
        assert scaled(masked((x, 96 - x, x + 1, 97 - x), size=(97, 97)), (13, 40)).getextrema() == (0, 255)


def test_a_canvas_repeats_the_last_row_and_column() -> None:
    image = padded(Image.fromarray(START), (48, 32))
    assert image.crop((0, 0, WIDTH, HEIGHT)).tobytes() == Image.fromarray(START).tobytes()
    assert (np.asarray(image)[:30, 45:] == START[:, -1:]).all()
    assert Image.open(io.BytesIO(encoded(image, "PNG"))).size == (48, 32)
