"""Fewer classes, fewer training images: where a method's advantage begins."""

import numpy as np

from lion_fast.data.arrays import LabelledArrays
from lion_fast.errors import UserError


def take_subset(
    arrays: LabelledArrays, dataset: str, num_classes: int | None, train_fraction: float
) -> LabelledArrays:
    """Keep the first `num_classes` classes, and of each the first `train_fraction` of its images.

    Shares are rounded to whole images, at least one a class; larger fractions contain smaller ones.
    The test split loses classes only. Raises UserError when there are fewer classes
    and when no test image is left.
    """
    if num_classes is not None:
        if num_classes > len(arrays.class_names):
            raise UserError(
                f"num_classes is {num_classes}, but {dataset} has {len(arrays.class_names)}:"
                " lower it"
            )
        train, test = arrays.train_labels < num_classes, arrays.test_labels < num_classes
        if not test.any():
            raise UserError(
                f"num_classes is {num_classes}, and {dataset} has no test image of the first"
                f" {num_classes} classes: raise it"
            )
        arrays = arrays._replace(
            train_images=arrays.train_images[train],
            train_labels=arrays.train_labels[train],
            test_images=arrays.test_images[test],
            test_labels=arrays.test_labels[test],
            class_names=arrays.class_names[:num_classes],
        )
    if train_fraction < 1:
        labels = arrays.train_labels
        counts = np.bincount(labels)
        kept = np.maximum(1, np.rint(train_fraction * counts))
        first = _position_within_class(labels, counts) < kept[labels]
        arrays = arrays._replace(
            train_images=arrays.train_images[first], train_labels=labels[first]
        )
    return arrays


def _position_within_class(labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return for each image how many of its class stand before it."""
    by_class = np.argsort(labels, kind="stable")
    starts = np.cumsum(counts) - counts
    position = np.empty_like(labels)
    position[by_class] = np.arange(len(labels)) - starts[labels[by_class]]
    return position
