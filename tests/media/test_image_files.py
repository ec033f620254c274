"""Image decoding: supported files, and the errors of the others."""

from __future__ import annotations

import io
import os
import resource
import signal
import struct
import threading
import time
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageOps

from deployments.media.image_decoder import ImageDecoder
from deployments.media.image_files import decode
from rbee_serve.errors import InvalidRequest
from tests.media.image_kinds import KINDS, SMALL, encoded_image
from tests.vision.images import HEIGHT, WIDTH, chunk, encoded, png

MAX_PIXELS = 1_000_000


@pytest.fixture(scope="module")
def decoder() -> Iterator[ImageDecoder]:
    decoder = ImageDecoder(MAX_PIXELS)
    yield decoder
    decoder.close()


def refusal(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        decode(data, max_pixels)
    (violation,) = caught.value.violations
    assert violation.field == "image"
    return violation.constraint, violation.message


@pytest.mark.parametrize("name", KINDS)
def test_every_format_decodes_to_the_same_image(name: str, decoder: ImageDecoder) -> None:
    image = decoder.decode(encoded_image(name))
    assert (image.mode, image.size) == ("RGB", (WIDTH, HEIGHT))
    assert np.abs(np.asarray(image, np.int16) - SMALL).mean() < 3


@pytest.mark.parametrize(
    "data", [b"\0", b"RIFF", b"<svg", b"GIF89a", b"BM", b"II*\0", b"%PDF-1.7", b"RIFF\0\0\0\0WAVE"]
)
def test_other_formats_are_refused_by_their_first_bytes(data: bytes, decoder: ImageDecoder) -> None:
    assert refusal(data) == ("format", "is not a PNG, JPEG or WebP file; send one of these")
    with pytest.raises(InvalidRequest, match="mask: is not a PNG"):
        decoder.decode(data, "mask")


def test_a_refusal_names_the_field(decoder: ImageDecoder) -> None:
    with pytest.raises(InvalidRequest, match="mask: is not a whole PNG file"):
        decoder.decode(encoded_image("png")[:60], "mask")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(SMALL, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert expected.shape[:2] == ((WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH))
    assert np.array_equal(decode(data, MAX_PIXELS), expected)


def test_an_invalid_orientation_is_ignored() -> None:
    data = encoded(SMALL, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 20)
    assert decode(data, MAX_PIXELS).shape == (HEIGHT, WIDTH, 3)


def test_transparent_pixels_become_white() -> None:
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
def test_every_color_mode_becomes_rgb(mode: str) -> None:
    pixels = decode(encoded(Image.fromarray(SMALL).convert(mode), "PNG"), MAX_PIXELS)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert pixels.dtype == np.uint8


def test_cmyk_becomes_rgb() -> None:
    pixels = decode(encoded(Image.new("CMYK", (WIDTH, HEIGHT), (255, 0, 0, 0)), "JPEG"), MAX_PIXELS)
    assert np.abs(pixels.astype(int) - (0, 255, 255)).max() < 8


def test_16_bits_become_8() -> None:
    ramp = np.linspace(0, 65_535, WIDTH * HEIGHT).astype(np.uint16).reshape(HEIGHT, WIDTH)
    assert np.array_equal(decode(encoded(ramp, "PNG"), MAX_PIXELS)[..., 0], ramp >> 8)
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in ramp)
    colour = decode(png(WIDTH, HEIGHT, zlib.compress(rows), bits=16), MAX_PIXELS)
    assert np.array_equal(colour[..., 2], ramp >> 8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_decoded(kind: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert (decode(data, MAX_PIXELS) == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_may_have_one_pixel(kind: str) -> None:
    assert decode(encoded(np.full((1, 1, 3), 200, np.uint8), kind), MAX_PIXELS).shape == (1, 1, 3)


def test_an_extreme_aspect_ratio_is_refused() -> None:
    assert refusal(encoded(np.zeros((1, 101, 3), np.uint8), "PNG"))[0] == "ratio <= 100"
    assert refusal(encoded(np.zeros((1000, 1, 3), np.uint8), "JPEG"))[0] == "ratio <= 100"
    assert decode(encoded(np.zeros((1, 100, 3), np.uint8), "PNG"), MAX_PIXELS).shape == (1, 100, 3)


def with_declared_side(kind: str, side: int) -> bytes:
    """A small file whose header declares `side` squared pixels."""
    if kind == "PNG":
        return png(side, side, zlib.compress(bytes(1000)))
    if kind == "JPEG":
        data = bytearray(encoded_image("jpeg"))
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", side, side)
        return bytes(data)
    if side < 1415:  # libwebp checks that the file is whole first
        return encoded(np.zeros((side, side, 3), np.uint8), kind)
    body = b"VP8X\x0a\0\0\0" + bytes(4) + (side - 1).to_bytes(3, "little") * 2 + encoded_image("webp")[12:]
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("side", [1001, 1415, 65_535])
def test_an_image_is_refused_by_the_size_in_its_header(kind: str, side: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started_at = time.monotonic()
    expected = ("pixels <= 1000000", "must have at most 1000000 pixels; scale it down")
    assert refusal(with_declared_side(kind, side)) == expected
    assert time.monotonic() - started_at < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024


def test_a_decompression_bomb_is_refused() -> None:
    deflate = zlib.compressobj(9)
    row = bytes(9381 // 8 + 1)
    rows = b"".join(deflate.compress(row) for _ in range(9381)) + deflate.flush()
    bomb = png(9380, 9380, rows, bits=1, colour=0)
    assert len(bomb) < 15_000
    assert refusal(bomb, 50_000_000)[0] == "pixels <= 50000000"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("part", [0.05, 0.3, 0.5, 0.9])
def test_a_truncated_file_is_refused(name: str, part: float) -> None:
    whole = encoded_image(name)
    kind = KINDS[name][0]
    assert refusal(whole[: max(12, int(len(whole) * part))]) == (
        "readable", f"is not a whole {kind} file: it cannot be decoded"
    )  # fmt: skip


def with_chunk(name: bytes, data: bytes, checksum: bytes | None = None) -> bytes:
    """A whole PNG with that chunk after its header."""
    whole, extra = encoded_image("png"), chunk(name, data)
    return whole[:33] + (extra if checksum is None else extra[:-4] + checksum) + whole[33:]


@pytest.mark.parametrize(
    "data",
    [
        with_chunk(b"tEXt", b"a\0b", b"\0" * 4), with_chunk(b"gAMA", b"\0\0\0\1", b"\0" * 4),
        with_chunk(b"iCCP", b"junk"), with_chunk(b"zTXt", b"a\0\0junk"), with_chunk(b"prVt", b"any"),
        encoded_image("png")[:-12], encoded_image("png") + b"junk" * 99,
    ],
)  # fmt: skip
def test_a_fault_of_a_png_beside_its_pixels_changes_nothing(data: bytes) -> None:
    assert np.array_equal(decode(data, MAX_PIXELS), SMALL)


def test_a_wrong_checksum_of_the_header_is_refused() -> None:
    whole = encoded_image("png")
    assert refusal(whole[:29] + b"\0" * 4 + whole[33:])[0] == "readable"


def test_transparency_and_orientation_stay_when_metadata_is_at_fault() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    layers = Image.fromarray(SMALL).convert("P")
    data = encoded(layers, "PNG", exif=exif, transparency=bytes([0] * 256))
    broken = data[:33] + chunk(b"tEXt", b"a\0b")[:-4] + b"\0" * 4 + data[33:]
    assert np.array_equal(decode(broken, MAX_PIXELS), decode(data, MAX_PIXELS))
    assert decode(broken, MAX_PIXELS).shape == (WIDTH, HEIGHT, 3)
    assert (decode(broken, MAX_PIXELS) == 255).all()


@pytest.mark.parametrize("name", ["webp", "lossless"])
@pytest.mark.parametrize("size", [0, 1, 100, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_webp_with_a_placeholder_for_its_size_is_decoded(name: str, size: int) -> None:
    whole = encoded_image(name)
    streamed = whole[:4] + struct.pack("<I", size) + whole[8:]
    assert np.array_equal(decode(streamed, MAX_PIXELS), decode(whole, MAX_PIXELS))
    assert refusal(streamed[:-20])[0] == "readable"


@pytest.mark.parametrize("name", ["jpeg", "progressive"])
def test_a_jpeg_without_the_marker_of_its_end_is_decoded(name: str) -> None:
    whole = encoded_image(name)
    for end in (-1, -2):
        assert np.array_equal(decode(whole[:end], MAX_PIXELS), decode(whole, MAX_PIXELS))
    for end in range(-20, -2):
        assert refusal(whole[:end])[0] == "readable"
    assert np.array_equal(decode(whole + b"junk" * 99, MAX_PIXELS), decode(whole, MAX_PIXELS))


def test_a_png_with_fewer_rows_than_it_declares_is_refused() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in SMALL)
    assert "some of its pixels are missing" in refusal(png(WIDTH, HEIGHT + 1, zlib.compress(rows)))[1]
    assert decode(png(WIDTH, HEIGHT, zlib.compress(rows)), MAX_PIXELS).shape == SMALL.shape
    black = zlib.compress(bytes(HEIGHT * (1 + 3 * WIDTH)))
    assert not decode(png(WIDTH, HEIGHT, black), MAX_PIXELS).any()
    assert decode(interlaced_png(13, 11, 1), MAX_PIXELS).shape == (11, 13, 3)
    assert refusal(interlaced_png(13, 11, 0.9))[0] == "readable"


def interlaced_png(width: int, height: int, part: float) -> bytes:
    """A grey PNG in seven passes, with that part of its rows."""
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    sides = [(len(range(x, width, dx)), len(range(y, height, dy))) for x, y, dx, dy in steps]
    rows = b"".join((b"\0" + b"\x70" * across) * down for across, down in sides if across)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    data = zlib.compress(rows[: round(len(rows) * part)])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_with_fewer_rows_than_it_declares_is_refused(mode: str, progressive: bool) -> None:
    data = bytearray(encoded(Image.fromarray(SMALL).convert(mode), "JPEG", progressive=progressive))
    at = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[at + 5 : at + 7] = struct.pack(">H", 2 * HEIGHT)
    assert "some of its pixels are missing" in refusal(bytes(data))[1]
    cut = encoded_image("jpeg")
    assert refusal(cut[: len(cut) * 2 // 3] + b"\xff\xd9")[0] == "readable"


def test_a_grey_image_is_whole() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        assert (decode(encoded(np.full((40, 30, 3), 128, np.uint8), kind), MAX_PIXELS) == 128).all()


def test_a_white_drawing_on_nothing_is_shown_on_black(decoder: ImageDecoder) -> None:
    drawing = Image.new("RGBA", (WIDTH, HEIGHT))
    drawing.paste((255, 255, 250, 255), (10, 10, 20, 20))
    drawing.paste((255, 255, 255, 90), (20, 10, 21, 20))
    pixels = decode(encoded(drawing, "PNG"), MAX_PIXELS)
    assert not pixels[:10].any()
    assert (pixels[10:20, 10:20] == (255, 255, 250)).all()
    read = decoder.read(encoded(drawing, "PNG"))
    assert np.array_equal(np.asarray(read.image), pixels)
    assert read.changes("image") == [
        "The transparent part of image is made black, since what can be seen of it is white"
    ]
    drawing.paste((0, 0, 200, 255), (30, 10, 31, 20))
    assert (decode(encoded(drawing, "PNG"), MAX_PIXELS)[:10] == 255).all()
    assert (decode(encoded(Image.new("RGBA", (9, 9)), "PNG"), MAX_PIXELS) == 255).all()


def test_what_a_file_has_beside_the_image_is_reported(decoder: ImageDecoder) -> None:
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "green")]
    for kind in ("PNG", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert decoder.read(data).changes("mask") == ["Of the animation in mask only the first frame is used"]
    for data in (encoded_image("png"), encoded_image("jpeg"), encoded(frames[0].convert("RGBA"), "WEBP")):
        assert decoder.read(data).changes("image") == []


def test_several_files_are_decoded_concurrently() -> None:
    decoder, good = ImageDecoder(MAX_PIXELS, processes=2), encoded_image("png")
    decoder.decode(good)
    (first,) = decoder.pids  # the second process is not needed yet
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
