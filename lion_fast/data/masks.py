"""Decoded sets whose every pixel has a class: images and masks in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from lion_fast.data.arrays import LabelledArrays
from lion_fast.data.dataset import check_size, check_varied
from lion_fast.data.images import DecodedSet
from lion_fast.data.own import masked_arrays_of_tensors
from lion_fast.errors import UserError


@dataclass(frozen=True)
class MaskSet(DecodedSet):
    """A set of images with a mask each, (N, H, W) uint8 of classes and IGNORED.

    Class 0 is the background, as in most such sets: accuracies in training leave it out.
    """

    @classmethod
    def from_arrays(cls, name: str, arrays: LabelledArrays, where: str) -> Self:
        """Return the set of `arrays`, which it shares, with their statistics.

        Raise UserError, beginning with `where`, when nothing can be learned of it: fewer than two
        classes in the training masks, images below 8x8 pixels, a constant channel.
        """
        images = cls._of(name, arrays)
        check_size(where, images.image_size)
        if (images.class_counts() > 0).sum() < 2:
            raise UserError(
                f"{where}: the training masks hold fewer than two classes: nothing can be told"
                " apart"
            )
        check_varied(where, images.std)
        return images

    @classmethod
    def from_tensors(
        cls,
        train_images: Tensor,
        train_masks: Tensor,
        test_images: Tensor,
        test_masks: Tensor,
        class_names: Sequence[str] | None = None,
        *,
        name: str = "tensors",
    ) -> Self:
        """Return the set of uint8 images, (N, H, W, C) or (N, C, H, W), and integer masks.

        C is 1 or 3; masks are (N, H, W) of classes 0 to K - 1, at most 255 of them, and 255 where a
        pixel belongs to none. Classes without names are numbered. Raise UserError on anything else
        and as `from_arrays` does.
        """
        arrays = masked_arrays_of_tensors(
            train_images, train_masks, test_images, test_masks, class_names
        )
        return cls.from_arrays(name, arrays, name)
