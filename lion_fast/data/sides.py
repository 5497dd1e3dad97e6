"""Which sizes the images of a set can be reduced to."""

from lion_fast.data.dataset import MIN_IMAGE_SIZE
from lion_fast.errors import UserError
from lion_fast.kernels import reduced_sides
from lion_fast.resolutions import Resolutions


def check_sides(
    resolutions: Resolutions, image_size: tuple[int, int], *, has_masks: bool = False
) -> None:
    """Raise UserError, with the sizes that work, unless images (H, W) can take that course.

    Those are the sizes that `reduce_images` makes and that the networks' halvings take. has_masks:
    whether the images have a class a pixel, whose masks are not reduced.
    """
    height, width = image_size
    possible = [side for side in reduced_sides(height) if side >= MIN_IMAGE_SIZE]
    for side, steps in resolutions.stages:
        if height == width and side in possible and not has_masks:
            continue
        if has_masks:
            remedy = "masks are not reduced, so leave resolutions out"
        elif height != width:
            remedy = "only square ones are reduced, so leave resolutions out"
        elif side == height:
            remedy = "training ends at that size anyway, so leave it out"
        elif possible:
            remedy = f"give one of {', '.join(map(str, possible))}"
        else:
            remedy = f"networks need {MIN_IMAGE_SIZE} of them, so leave resolutions out"
        images = f"images are {height}x{width} pixels"
        raise UserError(f"resolutions has {side}:{steps}, and {images}: {remedy}")
