"""From an image, a file or in memory, to uint8 RGB pixels, and what to do with a broken file."""

import os
import struct
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

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
_SKIP = "replace it, or train without it: --skip-corrupt"
_EXIF_ORIENTATION = 0x0112
_CHANNELS = (1, 3, 4)
# By way of which other modes with alpha become RGB.
_WITH_ALPHA = {"PA": "RGBA", "La": "LA", "RGBa": "RGBA"}
# Decoded images in flight at once: bounds the memory held and the wait after an error.
_MAX_BLOCK_IMAGES = 1024
_MAX_BLOCK_BYTES = 2**28


def image_pixels(
    image: Any, size: tuple[int, int] | None = None, where: str = "an image"
) -> np.ndarray:
    """Return an image in any form as (H, W, 3) uint8 RGB, stretched to `size` = (H, W) if given.

    image: the path of a JPEG or PNG file, a PIL image, or an array or tensor (H, W), (H, W, C) or
    (C, H, W) of 1, 3 or, as RGBA, 4 channels, of uint8, uint16 or bool. A file, the PIL image of it
    and the array of that have the same pixels, which `decode_image` says; only huge files are
    shrunk another way. Raises UserError, beginning with `where` or the path, on anything else.
    """
    if isinstance(image, str | os.PathLike):
        return decode_image(Path(image), size, remedy="replace it")
    if isinstance(image, Image.Image):
        try:
            rgb = _upright_rgb(image)
        except _DECODE_ERRORS as error:
            raise UserError(
                f"{where} is a PIL image that cannot become RGB ({reason(error)}): convert or"
                " replace it"
            ) from error
    else:
        rgb = Image.fromarray(_array_pixels(image, where))
    if size is not None and rgb.size != size[::-1]:
        rgb = rgb.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def _array_pixels(image: Any, where: str) -> np.ndarray:
    """Return an array or tensor as (H, W, 3) uint8; see `image_pixels`."""
    try:
        array = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    except (TypeError, ValueError, RuntimeError):  # a tensor of a type that numpy lacks
        array = None
    if array is None or array.dtype not in (np.uint8, np.uint16, np.bool_):
        found = getattr(image, "dtype", type(image).__name__)
        raise UserError(
            f"{where} is {str(found).removeprefix('torch.')}: give PIL or uint8 images, without"
            " ToTensor or Normalize in the data set's transform (lion-fast normalises by itself)"
        )
    if array.ndim == 2:
        array = array[..., None]
    # The networks need 8 pixels, so one, three or four of them are channels.
    if array.ndim == 3 and array.shape[2] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in _CHANNELS or not array.size:
        raise UserError(
            f"{where} has shape {array.shape}: it must be an image of 1, 3 or 4 channels"
        )
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        is_grey = array.shape[2] == 1
        array = _eight_bits(array) if is_grey else (array >> 8).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(array[..., :3], (*array.shape[:2], 3)))


def decode_image(
    path: Path,
    size: tuple[int, int] | None = None,
    *,
    remedy: str = _SKIP,
) -> np.ndarray:
    """Return a JPEG or PNG file as (H, W, 3) uint8 RGB, stretched to `size` = (H, W) if given.

    Grey and palette images are expanded, alpha is dropped without blending, CMYK is converted,
    16-bit samples are scaled to 8 bits (grey ones rounded; Pillow keeps the high byte of colour,
    at most one level off) and the EXIF orientation is applied: the choices of
    `nvidia.dali.fn.decoders.image(output_type=RGB)`. Resizing is bilinear with antialiasing.
    A JPEG of more than HUGE_PIXELS is decoded at a half, a quarter or an eighth of its size where
    twice `size` remains, and other huge images are decoded one at a time, so that memory stays
    bounded. Raise UserError, naming the file and ending with `remedy`, when it cannot be read and
    decoded in full.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if size is not None and image.width * image.height > HUGE_PIXELS:
                image.draft(None, (2 * max(size), 2 * max(size)))
            is_huge = image.width * image.height > HUGE_PIXELS
            with _ONE_HUGE_IMAGE if is_huge else nullcontext():
                rgb = _upright_rgb(image)
                if size is not None and is_huge:
                    rgb = rgb.resize(size[::-1], Image.Resampling.BILINEAR)
    except _DECODE_ERRORS as error:
        raise _unreadable(path, error, remedy) from error
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
        raise _unreadable(path, error, _SKIP) from error


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


def _unreadable(path: Path, error: BaseException, remedy: str) -> UserError:
    return UserError(f"{path} cannot be decoded ({reason(error)}): {remedy}")


def _upright_rgb(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(_to_rgb(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return the image in mode RGB; raise ValueError where its levels have no known scale."""
    if image.mode == "F":
        raise ValueError("its levels are floating-point numbers of unknown scale")
    if image.mode.startswith("I"):
        # 16-bit grey, which Pillow's own conversion would clip at 255.
        grey = Image.fromarray(_eight_bits(np.asarray(image)))
        grey.info = image.info
        image = grey
    elif image.mode in _WITH_ALPHA or (image.mode == "P" and "transparency" in image.info):
        # Pillow warns when a palette's alpha is dropped in one go.
        image = image.convert(_WITH_ALPHA.get(image.mode, "RGBA"))
    return image.convert("RGB")


def _eight_bits(levels: np.ndarray) -> np.ndarray:
    """Return 16-bit grey levels, rounded to 8 bits; raise ValueError where they are of more."""
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"its levels go from {levels.min()} to {levels.max()}, beyond 16 bits")
    return ((levels.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)


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
