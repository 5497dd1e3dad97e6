"""Small images, and their bytes in a file."""

import io

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


NOISE = RNG.integers(0, 256, (12, 10, 3), np.uint8)


GREY16 = RNG.integers(0, 65536, (12, 10), np.uint16)


SMOOTH = np.asarray(Image.fromarray(NOISE[:4, :4]).resize((10, 12), Image.Resampling.BICUBIC))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
