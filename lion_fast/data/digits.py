"""The digits that come with the package, so that the first run needs no download."""

from pathlib import Path

import numpy as np

from lion_fast.data.arrays import LabelledArrays

_FILE = Path(__file__).with_name("digits.npz")
_NUM_TEST = 360


def read_levels() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return training and test split of 1,797 handwritten digits (see digits.md).

    Each is (N, 8, 8) uint8 of levels 0 to 16, and (N,) int64 digits. They stand in the order of
    their writers, so the last 360, the test split, are by other hands than most of the rest.
    """
    with np.load(_FILE) as archive:
        grey, labels = archive["images"], archive["labels"].astype(np.int64)
    train, test = slice(None, -_NUM_TEST), slice(-_NUM_TEST, None)
    return (grey[train], labels[train]), (grey[test], labels[test])


def read_digits() -> LabelledArrays:
    """Return 1,797 handwritten digits (Alpaydin and Kaynak 1998) as 16x16 RGB.

    Their 17 grey levels are scaled to 0..255 and each pixel doubled in both directions.
    """
    (train, train_labels), (test, test_labels) = read_levels()
    return LabelledArrays(
        _enlarged(train), train_labels, _enlarged(test), test_labels, tuple("0123456789")
    )


def _enlarged(grey: np.ndarray) -> np.ndarray:
    levels = np.rint(grey * (255 / 16)).astype(np.uint8)
    return levels.repeat(2, axis=1).repeat(2, axis=2)[..., None].repeat(3, axis=3)
