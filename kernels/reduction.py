"""reduce_images: images at a smaller side by the exact area filter, each output of 2 x 2 inputs.

Sides of n / (n + 1) of the full one, such as 16 and 24 of 32: cut into bands n + 1 pixels high and
wide, the image keeps n of them a band. Output i = n * k + r, the r-th of band k, covers

    (n - r) / n of input j = i + k and (r + 1) / n of input j + 1, r = 0 ... n - 1

and so its area-weighted mean takes them with the weights

    first_r = (n - r) / (n + 1)    second_r = (r + 1) / (n + 1)

    half, n = 1:            (1/2, 1/2), the mean of 2 x 2 pixels
    three quarters, n = 3:  (3/4, 1/4), (2/4, 2/4), (1/4, 3/4)

    out[y, x] = first_y * row(y + k_y) + second_y * row(y + k_y + 1)
    row(j) = first_x * in[j, x + k_x] + second_x * in[j, x + k_x + 1]

Products and sums are rounded to fp32 one by one, along the rows first, the left and upper term
first. So the result is the same to the last bit wherever it is computed; and it commutes with a
mirror, whose sums have the same two terms.

`augment_batch` does the same inside its launch.
"""

import torch
from torch import Tensor


def reduced_sides(full: int) -> list[int]:
    """Return the sides in pixels to which images of side `full` can be reduced, smallest first."""
    return [side for side in range(1, full) if kept_of_band(full, side)]


def check_reduced(size: tuple[int, int], side: int) -> None:
    """Raise ValueError, with the sides that work, unless images (H, W) can be reduced to `side`."""
    height, width = size
    if height != width:
        raise ValueError(f"images are {height}x{width} pixels, and only square ones are reduced")
    if side != height and not kept_of_band(height, side):
        sides = ", ".join(map(str, reduced_sides(height)))
        raise ValueError(f"{side} pixels of {height}: images of this size are reduced to {sides}")


def kept_of_band(full: int, side: int) -> int:
    """Return n where `side` is n / (n + 1) of `full`, else 0: at the full side too."""
    bands = full - side
    return side // bands if 0 < side < full and side % bands == 0 else 0


def reduce_images(images: Tensor, side: int) -> Tensor:
    """Return images (B, C, H, H) at (B, C, side, side), in their dtype and memory format.

    At `side` = H they are returned as they are. Arithmetic is fp32, or fp64 for fp64: reduce before
    casting to less. Differentiable. Raises ValueError where `side` is none of `reduced_sides(H)`.
    """
    size = images.shape[-2], images.shape[-1]
    check_reduced(size, side)
    if side == size[0]:
        return images
    kept = kept_of_band(size[0], side)
    dtype = torch.promote_types(images.dtype, torch.float32)
    return _reduce(_reduce(images.to(dtype), -1, kept), -2, kept).to(images.dtype)


def _reduce(images: Tensor, dim: int, kept: int) -> Tensor:
    """Keep `kept` of every `kept + 1` pixels along `dim`, which is counted from the end."""
    bands = images.unflatten(dim, (-1, kept + 1))  # the pixels of a band along dim
    second = torch.arange(1, kept + 1, dtype=images.dtype, device=images.device)
    # By a tensor: on a GPU a number would be multiplied with its reciprocal, for other last bits.
    second = (second / torch.full_like(second, kept + 1)).view(-1, *[1] * (-1 - dim))
    first = second.flip(0)  # n - r for r + 1
    reduced = bands.narrow(dim, 0, kept) * first + bands.narrow(dim, 1, kept) * second
    return reduced.flatten(dim - 1, dim)
