"""A file, the PIL image of it and its array are the same pixels, whoever asks for them."""

import io

import numpy as np
import pytest
import torch
from encoded_images import GREY16, NOISE, SMOOTH, encoded
from PIL import Image

from lion_fast.data.decode import decode_image, image_pixels
from lion_fast.data.images import ImageSet
from lion_fast.errors import UserError
from lion_fast.training.saved import Transform

GREY = Image.fromarray(NOISE[..., 0])
ALPHA = Image.fromarray(NOISE[::-1, :, 0].copy())
RGB = Image.fromarray(NOISE)
PALETTE = RGB.quantize(16)
CMYK = Image.fromarray(SMOOTH).convert("CMYK")


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


FILES = {
    "grey": encoded(GREY),
    "grey and alpha": encoded(Image.merge("LA", (GREY, ALPHA))),
    "colour": encoded(RGB),
    "alpha": encoded(Image.merge("RGBA", (*RGB.split(), ALPHA))),
    "palette": encoded(PALETTE),
    "palette with alpha": encoded(PALETTE, transparency=bytes(range(0, 160, 10))),
    "black and white": encoded(GREY.point(lambda level: 255 * (level > 99), "1")),
    "16-bit grey": encoded(Image.fromarray(GREY16)),
    "JPEG": encoded(Image.fromarray(SMOOTH), "JPEG"),
    "grey JPEG": encoded(Image.fromarray(SMOOTH).convert("L"), "JPEG"),
    "CMYK JPEG": encoded(CMYK, "JPEG"),
    **{f"turned {n}": encoded(Image.fromarray(SMOOTH), "JPEG", **turned(n)) for n in range(2, 9)},
    "turned PNG": encoded(RGB, **turned(6)),
    "turned 16-bit grey": encoded(Image.fromarray(GREY16), **turned(8)),
}
# Of these np.asarray keeps no colours, or not which way is up.
NOT_AS_ARRAY = ("palette", "CMYK", "turned", "grey and alpha")


def opened(content):
    return Image.open(io.BytesIO(content))


def doors(path, content, size):
    """Every way by which the image of a file becomes pixels."""
    transform = Transform(size, (0.0,) * 3, (1.0,) * 3)

    def transformed(image):
        return transform(image).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()

    forms = {"path": path, "str": str(path), "PIL": opened(content), "loaded PIL": opened(content)}
    forms["loaded PIL"].load()
    if not any(word in path.name for word in NOT_AS_ARRAY):
        array = np.array(opened(content))
        planes = array if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
        forms |= {"array": array, "tensor": torch.from_numpy(array), "planes": planes}
    for name, form in forms.items():
        yield name, image_pixels(form, size)
        yield f"{name} to predict", transformed(form)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("is_resized", [False, True])
def test_every_door_gives_the_pixels_of_the_file(tmp_path, name, is_resized):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    size = (17, 9) if is_resized else decode_image(path).shape[:2]
    expected = decode_image(path, size)
    assert expected.std() > 20 and (expected < 255).mean() > 0.3
    for door, found in doors(path, FILES[name], size):
        assert np.array_equal(found, expected), door


@pytest.mark.parametrize("name", FILES)
def test_a_data_set_of_files_images_or_arrays_is_one_set(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    flat = Image.fromarray(np.full((*decode_image(path).shape[:2], 3), 7, np.uint8))
    expected = torch.from_numpy(decode_image(path).copy())
    for form in (path, str(path), opened(FILES[name])):
        images = ImageSet.from_datasets([(form, 0), (flat, 1)], [(form, 0), (flat, 1)])
        assert torch.equal(images.train_images[0], expected)
        assert torch.equal(images.test_images[0], expected)


def test_16_bit_colour_of_an_array_is_that_of_a_file(tmp_path):
    from test_decode import png16

    samples = np.stack([GREY16, GREY16[::-1], GREY16[:, ::-1]], axis=2)
    path = tmp_path / "image"
    path.write_bytes(png16(samples, 2))
    assert np.array_equal(image_pixels(samples), decode_image(path))


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "PA", "La", "RGBa"])
def test_modes_that_files_lack_become_rgb(mode):
    via = {"PA": "P", "La": "LA", "RGBa": "RGBA"}.get(mode, "RGB")
    image = Image.fromarray(SMOOTH).convert(via)
    image = image if mode == via else image.convert(mode)
    found = image_pixels(image)
    assert found.shape == SMOOTH.shape and found.std() > 10


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (
            Image.fromarray(NOISE[..., 0] / np.float32(255)),
            "a PIL image.*unknown scale",
        ),
        (Image.fromarray(GREY16.astype(np.int32) * 2), "from .* to .*, beyond 16 bits"),
        (Image.fromarray(-GREY16.astype(np.int32)), "beyond 16 bits"),
        (NOISE / 255, "an image is float64: give"),
        (NOISE.astype(np.int64), "an image is int64: give PIL or uint8"),
        (torch.zeros(3, 9, 9, dtype=torch.bfloat16), "an image is bfloat16: give PIL or uint8"),
        (NOISE[:, :, :2], r"an image has shape \(12, 10, 2\): it must be an image of 1, 3 or 4"),
        (NOISE[:0], "an image has shape"),
        (NOISE[None], "an image has shape"),
        (None, "an image is NoneType: give PIL or uint8"),
        (b"bytes", "an image is bytes: give PIL or uint8"),
        ("nowhere.png", "nowhere.png cannot be decoded .*: replace it$"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(image, words):
    with pytest.raises(UserError, match=words) as caught:
        image_pixels(image)
    assert len(str(caught.value).splitlines()) == 1


def test_a_pil_image_cut_short_is_refused_in_one_line():
    cut = opened(encoded(Image.fromarray(NOISE).resize((90, 90)))[:5000])
    with pytest.raises(UserError, match=r"train\[1\] is a PIL image that cannot become RGB"):
        ImageSet.from_datasets([(NOISE.repeat(9, 0).repeat(9, 1), 0), (cut, 1)], [(NOISE, 0)])
