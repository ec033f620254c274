"""Decoding: what is taken, what is refused with which words, and that no file takes the worker down."""

from __future__ import annotations

import io
import os
import random
import resource
import signal
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from deployments.media.image_decoder import ImageDecoder
from deployments.media.image_files import decode
from rbee_serve.errors import InvalidRequest
from tests.vision.images import HEIGHT, WIDTH, encoded, png, sample_image

MAX_PIXELS = 1_000_000
FLIPPED_FILES = 500
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    "progressive": ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}),
    "webp": ("WEBP", {"quality": 95}),
    "lossless": ("WEBP", {"lossless": True}),
}
SMALL = sample_image()


@pytest.fixture(scope="module")
def decoder() -> Iterator[ImageDecoder]:
    decoder = ImageDecoder(MAX_PIXELS)
    yield decoder
    decoder.close()


def file_of(name: str) -> bytes:
    kind, options = KINDS[name]
    return encoded(SMALL, kind, **options)


def refusal(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        decode(data, max_pixels)
    (violation,) = caught.value.violations
    assert violation.field == "image"
    return violation.constraint, violation.message


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_becomes_the_same_picture(name: str, decoder: ImageDecoder) -> None:
    image = decoder.decode(file_of(name))
    assert (image.mode, image.size) == ("RGB", (WIDTH, HEIGHT))
    assert np.abs(np.asarray(image, np.int16) - SMALL).mean() < 3


@pytest.mark.parametrize(
    "data", [b"\0", b"RIFF", b"<svg", b"GIF89a", b"BM", b"II*\0", b"%PDF-1.7", b"RIFF\0\0\0\0WAVE"]
)
def test_other_kinds_are_refused_by_their_first_bytes(data: bytes, decoder: ImageDecoder) -> None:
    assert refusal(data) == ("format", "is not a PNG, JPEG or WebP file; send one of these")
    with pytest.raises(InvalidRequest, match="mask: is not a PNG"):
        decoder.decode(data, "mask")


def test_a_refusal_names_the_field(decoder: ImageDecoder) -> None:
    with pytest.raises(InvalidRequest, match="mask: is not a whole PNG file"):
        decoder.decode(file_of("png")[:60], "mask")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_of_a_camera_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(SMALL, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert expected.shape[:2] == ((WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH))
    assert np.array_equal(decode(data, MAX_PIXELS), expected)


def test_an_orientation_that_cannot_be_read_is_none() -> None:
    data = encoded(SMALL, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 20)
    assert decode(data, MAX_PIXELS).shape == (HEIGHT, WIDTH, 3)


def test_what_is_transparent_is_white() -> None:
    image = Image.fromarray(SMALL).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, WIDTH // 2, HEIGHT))
    palette = Image.new("P", (WIDTH, HEIGHT), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.paste(0, (0, 0, WIDTH // 2, HEIGHT))
    for data, right in [
        (encoded(image, "PNG"), SMALL[0, -1]),
        (encoded(image, "WEBP", lossless=True), SMALL[0, -1]),
        (encoded(palette, "PNG", transparency=0), (40, 50, 60)),
        (encoded(palette, "PNG", transparency=bytes([0, 255])), (40, 50, 60)),
    ]:
        pixels = decode(data, MAX_PIXELS)
        assert (pixels[:, : WIDTH // 2] == 255).all()
        assert (pixels[0, -1] == right).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_colour_model_becomes_rgb(mode: str) -> None:
    pixels = decode(encoded(Image.fromarray(SMALL).convert(mode), "PNG"), MAX_PIXELS)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert pixels.dtype == np.uint8


def test_cmyk_becomes_rgb() -> None:
    pixels = decode(encoded(Image.new("CMYK", (WIDTH, HEIGHT), (255, 0, 0, 0)), "JPEG"), MAX_PIXELS)
    assert np.abs(pixels.astype(int) - (0, 255, 255)).max() < 8


def test_sixteen_bits_become_eight() -> None:
    ramp = np.linspace(0, 65_535, WIDTH * HEIGHT).astype(np.uint16).reshape(HEIGHT, WIDTH)
    assert np.array_equal(decode(encoded(ramp, "PNG"), MAX_PIXELS)[..., 0], ramp >> 8)
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in ramp)
    colour = decode(png(WIDTH, HEIGHT, zlib.compress(rows), bits=16), MAX_PIXELS)
    assert np.array_equal(colour[..., 2], ramp >> 8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_picture_of_an_animation_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert (decode(data, MAX_PIXELS) == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_one_pixel_is_a_picture(kind: str) -> None:
    assert decode(encoded(np.full((1, 1, 3), 200, np.uint8), kind), MAX_PIXELS).shape == (1, 1, 3)


def test_a_line_is_refused() -> None:
    assert refusal(encoded(np.zeros((1, 101, 3), np.uint8), "PNG"))[0] == "ratio <= 100"
    assert refusal(encoded(np.zeros((1000, 1, 3), np.uint8), "JPEG"))[0] == "ratio <= 100"
    assert decode(encoded(np.zeros((1, 100, 3), np.uint8), "PNG"), MAX_PIXELS).shape == (1, 100, 3)


def claiming(kind: str, side: int) -> bytes:
    """A small file whose header says that it has `side` squared pixels."""
    if kind == "PNG":
        return png(side, side, zlib.compress(bytes(1000)))
    if kind == "JPEG":
        data = bytearray(file_of("jpeg"))
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", side, side)
        return bytes(data)
    if side < 1415:  # whose size is looked at once libwebp has seen that the file is whole
        return encoded(np.zeros((side, side, 3), np.uint8), kind)
    body = b"VP8X\x0a\0\0\0" + bytes(4) + (side - 1).to_bytes(3, "little") * 2 + file_of("webp")[12:]
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("side", [1001, 1415, 65_535])
def test_a_picture_is_refused_by_the_size_in_its_header(kind: str, side: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    expected = ("pixels <= 1000000", "must have at most 1000000 pixels; scale it down")
    assert refusal(claiming(kind, side)) == expected
    assert time.monotonic() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024


def test_little_data_that_becomes_many_pixels_is_refused() -> None:
    deflate = zlib.compressobj(9)
    row = bytes(9381 // 8 + 1)
    rows = b"".join(deflate.compress(row) for _ in range(9381)) + deflate.flush()
    bomb = png(9380, 9380, rows, bits=1, colour=0)
    assert len(bomb) < 15_000
    assert refusal(bomb, 50_000_000)[0] == "pixels <= 50000000"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("part", [0.05, 0.3, 0.5, 0.9])
def test_a_file_that_is_cut_short_is_refused(name: str, part: float) -> None:
    whole = file_of(name)
    kind = KINDS[name][0]
    assert refusal(whole[: max(12, int(len(whole) * part))]) == (
        "readable", f"is not a whole {kind} file: it cannot be decoded"
    )  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_no_flipped_bit_ends_the_decoder(name: str, decoder: ImageDecoder) -> None:
    whole, chance = file_of(name), random.Random(name)
    decoder.decode(whole)
    pids, answers = decoder.pids, {"pictures": 0, "refused": 0}
    fields: set[str] = set()
    for _ in range(FLIPPED_FILES):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 3, 20))):
            # Half of them in the headers, where they do most.
            end = chance.choice((min(100, len(data)), len(data)))
            data[chance.randrange(end)] ^= 1 << chance.randrange(8)
        try:
            image = decoder.decode(bytes(data))
        except InvalidRequest as exc:
            answers["refused"] += 1
            fields.update(violation.field for violation in exc.violations)
        else:
            answers["pictures"] += 1
            assert image.mode == "RGB"
            assert 0 < image.width * image.height <= MAX_PIXELS
    assert (decoder.pids, fields) == (pids, {"image"})
    assert min(answers.values()) > 0
    assert sum(answers.values()) == FLIPPED_FILES
    assert decoder.decode(whole).size == (WIDTH, HEIGHT)


def test_a_decoder_that_is_killed_by_a_file_is_replaced(decoder: ImageDecoder) -> None:
    good = file_of("png")
    decoder.decode(good)
    (first,) = decoder.pids
    os.kill(first, signal.SIGSTOP)  # so that it has the file, and has not answered, when the fault comes
    fault = threading.Timer(0.2, os.kill, (first, signal.SIGKILL))
    fault.start()
    with pytest.raises(InvalidRequest, match="mask: makes the decoder fail"):
        decoder.decode(good, "mask")
    fault.join()
    assert decoder.decode(good).size == (WIDTH, HEIGHT)
    assert decoder.pids != [first]


def test_several_files_are_decoded_at_a_time() -> None:
    decoder, good = ImageDecoder(MAX_PIXELS, processes=2), file_of("png")
    decoder.decode(good)
    (first,) = decoder.pids  # one is enough as long as it is idle
    os.kill(first, signal.SIGSTOP)
    busy = threading.Thread(target=decoder.decode, args=(good,))
    busy.start()
    while decoder._idle.qsize() == 2:
        time.sleep(0.01)
    assert decoder.decode(good).size == (WIDTH, HEIGHT)
    assert len(decoder.pids) == 2
    os.kill(first, signal.SIGCONT)
    busy.join()
    decoder.close()
    assert decoder.pids == []
