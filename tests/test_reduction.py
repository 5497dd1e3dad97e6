import pytest
import torch
import torch.nn.functional as F

from lion_fast.kernels import reduce_images, reduced_sides

LAYOUTS = {True: torch.channels_last, False: torch.contiguous_format}


def make_images(side, channels_last=True, num=3):
    images = torch.randn(num, 3, side, side, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=LAYOUTS[channels_last])


def area_mean(images, side):
    """Mean over each output pixel's area, of pixels cut into `side` x `side` equal parts."""
    full = images.shape[-1]
    parts = images.double().repeat_interleave(side, 2).repeat_interleave(side, 3)
    return F.avg_pool2d(parts, full)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    "full, side", [(32, 16), (32, 24), (32, 28), (16, 8), (16, 12), (21, 14), (8, 7), (2, 1)]
)
def test_every_output_is_the_mean_over_its_area(full, side, channels_last, poisoned_memory):
    images = make_images(full, channels_last)
    reduced, exact = reduce_images(images, side), area_mean(images, side)
    # Each way a weight, two products and a sum are rounded, at magnitudes of the images.
    assert (reduced - exact).abs().max() <= 8 * 2**-24 * images.abs().max()
    assert (reduce_images(images.double(), side) - exact).abs().max() <= 8 * 2**-53 * 5
    assert reduced.is_contiguous(memory_format=LAYOUTS[channels_last])


def test_half_the_side_is_the_mean_of_two_by_two_pixels():
    images = make_images(8)
    pairs = [0.5 * images[..., y::2, 0::2] + 0.5 * images[..., y::2, 1::2] for y in (0, 1)]
    assert torch.equal(reduce_images(images, 4), 0.5 * pairs[0] + 0.5 * pairs[1])


def test_three_quarters_take_three_pixels_of_four_in_the_written_order():
    images = make_images(8)
    weights = [(0.75, 0.25), (0.5, 0.5), (0.25, 0.75)]
    reduced = reduce_images(images, 6)
    for y in range(6):
        for x in range(6):
            (top, bottom), (left, right) = weights[y % 3], weights[x % 3]
            corner = y + y // 3, x + x // 3
            rows = [
                left * images[..., corner[0] + j, corner[1]]
                + right * images[..., corner[0] + j, corner[1] + 1]
                for j in (0, 1)
            ]
            assert torch.equal(reduced[..., y, x], top * rows[0] + bottom * rows[1])


@pytest.mark.parametrize("side", [16, 24, 28, 30, 31])
def test_a_mirror_before_is_a_mirror_after(side):
    images = make_images(32)
    assert torch.equal(reduce_images(images.flip(3), side), reduce_images(images, side).flip(3))


def test_memory_formats_agree_to_the_bit():
    for side in reduced_sides(32):
        last, first = (reduce_images(make_images(32, layout), side) for layout in (True, False))
        assert torch.equal(last, first)


def test_lower_precisions_are_reduced_in_fp32_and_rounded_once():
    images = make_images(32).bfloat16()
    assert torch.equal(reduce_images(images, 24), reduce_images(images.float(), 24).bfloat16())


def test_the_full_side_is_left_as_it_is():
    images = make_images(8)
    assert reduce_images(images, 8) is images


def test_sides_are_those_of_which_a_pixel_covers_two():
    assert reduced_sides(32) == [16, 24, 28, 30, 31]
    assert reduced_sides(21) == [14, 18, 20]


@pytest.mark.parametrize(
    "shape, side, message",
    [
        ((32, 32), 20, "20 pixels of 32: images of this size are reduced to 16, 24, 28, 30, 31"),
        ((32, 32), 8, "8 pixels of 32"),
        ((32, 32), 64, "64 pixels of 32"),
        ((32, 32), 0, "0 pixels of 32"),
        ((32, 32), -32, "-32 pixels of 32"),
        ((32, 48), 16, "images are 32x48 pixels, and only square ones are reduced"),
    ],
)
def test_other_sides_are_refused_with_those_that_work(shape, side, message):
    with pytest.raises(ValueError, match=message):
        reduce_images(torch.zeros(2, 3, *shape), side)


def test_gradients_are_those_of_the_weights():
    images = make_images(8, num=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda pixels: reduce_images(pixels, 6), images)
