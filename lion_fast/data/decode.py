"""From an encoded image file to uint8 RGB pixels, and what to do with a file that is broken."""

import os
import struct
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from lion_fast.data.arrays import reason
from lion_fast.errors import UserError

_DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
_FORMATS = ("JPEG", "PNG")
HUGE_PIXELS = 2**24
"""50 MB as RGB: what each core may hold of one image at a time."""
_ONE_HUGE_IMAGE = threading.Lock()
_EXIF_ORIENTATION = 0x0112
# Decoded images in flight at once: bounds the memory held and the wait after an error.
_MAX_BLOCK_IMAGES = 1024
_MAX_BLOCK_BYTES = 2**28


def decode_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return a JPEG or PNG file as (H, W, 3) uint8 RGB, stretched to `size` = (H, W) if given.

    Grey and palette images are expanded, alpha is dropped without blending, CMYK is converted,
    16-bit samples are scaled to 8 bits (grey ones rounded; Pillow keeps the high byte of colour,
    at most one level off) and the EXIF orientation is applied: the choices of
    `nvidia.dali.fn.decoders.image(output_type=RGB)`. Resizing is bilinear with antialiasing.
    A JPEG of more than HUGE_PIXELS is decoded at a half, a quarter or an eighth of its size where
    twice `size` remains, and other huge images are decoded one at a time, so that memory stays
    bounded. Raise UserError, naming the file, when it cannot be read and decoded in full.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if size is not None and image.width * image.height > HUGE_PIXELS:
                image.draft(None, (2 * max(size), 2 * max(size)))
            is_huge = image.width * image.height > HUGE_PIXELS
            with _ONE_HUGE_IMAGE if is_huge else nullcontext():
                rgb = ImageOps.exif_transpose(_to_rgb(image))
                if size is not None and is_huge:
                    rgb = rgb.resize(size[::-1], Image.Resampling.BILINEAR)
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from error
    if size is not None and rgb.size != size[::-1]:
        rgb = rgb.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def image_file_size(path: Path) -> tuple[int, int]:
    """Return (H, W) as `decode_image` would, of the header alone; raise UserError on a bad one."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            # Orientations 5 to 8 lie on their side.
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
            return (image.width, image.height) if turned else (image.height, image.width)
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error) from error


def flaw(path: Path) -> UserError | None:
    """Return why a file cannot be decoded, or None, reading no more of it than tells.

    A PNG is whole when its checksums are right, a JPEG when its header parses and it ends as it
    should; damage within a JPEG, which decoders bridge, is not looked for. Any other file is
    decoded.
    """
    if not _seems_whole(path):
        try:
            decode_image(path, (1, 1))
        except UserError as error:
            return error
    return None


def _seems_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            if image.format == "PNG":
                image.verify()
                return True
            file.seek(-2, os.SEEK_END)
            return file.read() == b"\xff\xd9"
    except _DECODE_ERRORS:
        return False


def _unreadable(path: Path, error: BaseException) -> UserError:
    return UserError(
        f"{path} cannot be decoded ({reason(error)}): replace it, or train without it: "
        "--skip-corrupt"
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey, which Pillow's own conversion would clip at 255.
        levels = (np.asarray(image).astype(np.int64) * 255 + 32767) // 65535
        grey = Image.fromarray(levels.astype(np.uint8))
        grey.info = image.info
        image = grey
    elif image.mode == "P" and "transparency" in image.info:
        # Pillow warns when a palette's alpha is dropped in one go.
        image = image.convert("RGBA")
    return image.convert("RGB")


def decode_files(
    paths: Sequence[Path], size: tuple[int, int], skip_corrupt: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each file's position in `paths` and its pixels (H, W, 3), in order, on every core.

    An unreadable file raises UserError, or is left out with `skip_corrupt`.
    """

    def decode(path: Path) -> np.ndarray | None:
        try:
            return decode_image(path, size)
        except UserError:
            if not skip_corrupt:
                raise
            return None

    block = max(1, min(_MAX_BLOCK_IMAGES, _MAX_BLOCK_BYTES // (3 * size[0] * size[1])))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), block):
            decoded = pool.map(decode, paths[start : start + block])
            for position, image in enumerate(decoded, start):
                if image is not None:
                    yield position, image
