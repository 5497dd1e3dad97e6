"""From the bytes of a PNG or JPEG to its pixels."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from encoded_images import GREY16, NOISE, SMOOTH, encoded
from PIL import Image

from lion_fast.data import decode as decode_module
from lion_fast.data.decode import decode_image, flaw, image_file_size
from lion_fast.errors import UserError


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_huge_image_is_shrunk_while_decoding_and_looks_the_same(tmp_path, monkeypatch, suffix):
    smooth = Image.fromarray(NOISE[:4, :4]).resize((900, 1200), Image.Resampling.BICUBIC)
    path = tmp_path / f"huge{suffix}"
    smooth.save(path)
    plain = decode_image(path, (40, 30)).astype(int)
    monkeypatch.setattr("lion_fast.data.decode.HUGE_PIXELS", 40_000)
    drafts = []
    to_rgb = decode_module._to_rgb
    monkeypatch.setattr(
        decode_module, "_to_rgb", lambda image: drafts.append(image.size) or to_rgb(image)
    )
    shrunk = decode_image(path, (40, 30))
    assert drafts == [(113, 150) if suffix == ".jpg" else (900, 1200)]
    assert np.abs(shrunk - plain).max() <= (4 if suffix == ".jpg" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_a_file_is_told_by_its_header(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    path.write_bytes(encoded(Image.fromarray(SMOOTH), "JPEG", exif=exif))
    assert image_file_size(path) == decode_image(path).shape[:2]


@pytest.mark.parametrize("damage", ["none", "empty", "text", "truncated", "flipped", "unended"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_flaw_is_found_wherever_decoding_finds_one(tmp_path, kind, damage):
    whole = encoded(Image.fromarray(SMOOTH), kind)
    flipped = bytearray(whole)
    flipped[60] ^= 255
    content = {
        "none": whole,
        "empty": b"",
        "text": b"no image at all",
        "truncated": whole[: len(whole) // 2],
        "flipped": bytes(flipped),
        "unended": whole + b"what some cameras append",
    }[damage]
    path = tmp_path / "image"
    path.write_bytes(content)
    try:
        decode_image(path)
    except UserError as error:
        assert str(flaw(path)) == str(error)
    else:
        assert flaw(path) is None


def png16(samples: np.ndarray, colour_type: int) -> bytes:
    """Encode (H, W, C) uint16 samples, which Pillow cannot."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def decode(tmp_path: Path, content: bytes, **options: object) -> np.ndarray:
    path = tmp_path / "image"
    path.write_bytes(content)
    return decode_image(path, **options)


ALPHA = Image.fromarray(NOISE[::-1, :, 0].copy())


GREY = Image.fromarray(NOISE[..., 0])


RGBA = Image.merge("RGBA", (*Image.fromarray(NOISE).split(), ALPHA))


PALETTE = Image.fromarray(NOISE).quantize(16)


GREY_RGB = np.repeat(NOISE[..., :1], 3, axis=2)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(encoded(GREY), GREY_RGB, id="grey"),
        pytest.param(encoded(Image.merge("LA", (GREY, ALPHA))), GREY_RGB, id="grey and alpha"),
        pytest.param(encoded(RGBA), NOISE, id="alpha"),
        pytest.param(encoded(PALETTE), np.asarray(PALETTE.convert("RGB")), id="palette"),
        pytest.param(
            encoded(PALETTE, transparency=bytes(range(0, 160, 10))),
            np.asarray(PALETTE.convert("RGB")),
            id="palette with alpha",
        ),
        pytest.param(
            encoded(GREY.point(lambda level: 255 * (level > 99), "1")),
            (GREY_RGB > 99) * np.uint8(255),
            id="black and white",
        ),
        pytest.param(
            png16(GREY16, 0),
            np.repeat(np.rint(GREY16[..., None] / 257), 3, axis=2),
            id="16-bit grey",
        ),
    ],
)
def test_every_kind_of_png_becomes_8_bit_rgb_without_blending(tmp_path, content, expected):
    found = decode(tmp_path, content)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


def test_16_bit_colour_is_at_most_one_level_off(tmp_path):
    samples = np.stack([GREY16, GREY16[::-1], GREY16[:, ::-1]], axis=2)
    found = decode(tmp_path, png16(samples, 2))
    assert np.abs(found - np.rint(samples / 257)).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_close_to_what_was_encoded(tmp_path, mode):
    image = Image.fromarray(SMOOTH).convert(mode)
    options = {} if mode == "L" else {"subsampling": 0}
    found = decode(tmp_path, encoded(image, "JPEG", quality=98, **options))
    expected = np.asarray(image.convert("RGB"))
    assert np.abs(found.astype(int) - expected).max() <= 6


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown upright after a quarter turn clockwise
    plain = decode(tmp_path, encoded(Image.fromarray(SMOOTH), kind))
    turned = decode(tmp_path, encoded(Image.fromarray(SMOOTH), kind, exif=exif))
    assert np.array_equal(turned, np.rot90(plain, -1))


def test_shrinking_averages_instead_of_dropping_pixels(tmp_path):
    board = np.zeros((64, 64, 3), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 254
    shrunk = decode(tmp_path, encoded(Image.fromarray(board)), size=(8, 8))
    assert np.abs(shrunk.astype(int) - 127).max() <= 8


def test_no_damage_raises_anything_but_a_user_error(tmp_path):
    rng = np.random.default_rng(0)
    seeds = [encoded(RGBA), encoded(PALETTE), encoded(Image.fromarray(SMOOTH), "JPEG")]
    num_refused = 0
    for trial in range(300):
        content = bytearray(seeds[trial % len(seeds)])
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(256)
        try:
            decode(tmp_path, bytes(content[: rng.integers(len(content) // 2, len(content) + 1)]))
        except UserError:
            num_refused += 1
    assert num_refused > 100
