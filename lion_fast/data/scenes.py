"""Digits on a canvas: a set with a class for every pixel, made by code from the digits that ship.

An image is a smooth grey background, one to three digits, enlarged to 12 to 24 pixels at random
places, later ones over earlier ones, and noise. Its mask says 1 + d where the ink of digit d is
strong, 255 (ignored) on the ink's soft edge, and 0 elsewhere, in four of five labelled pixels. The
digits of the test split are by other writers. All arithmetic is on integers, and of the generator
only the raw 64-bit output is used, so the pixels are the same on every machine.
"""

from typing import NamedTuple

import numpy as np

from lion_fast.data.arrays import IGNORED, LabelledArrays
from lion_fast.data.digits import read_levels

NUM_TRAIN, NUM_TEST = 4000, 400
SIDE = 32
"""Pixels of an image in each direction."""
CLASS_NAMES = ("background", *"0123456789")

_SEED = 0
_MOST_DIGITS = 3
_LEAST_SIZE, _MOST_SIZE = 12, 24
_COARSE = 5  # random levels in each direction that a background is interpolated from
_ONE = 64  # the sum of an interpolation's weights in one direction
_FULL = 16 * _ONE**2  # ink of full strength; the digits have 17 levels
_WORDS = _COARSE**2 + 1 + 5 * _MOST_DIGITS  # random words of an image's scene
_FLOOR, _BACKGROUND, _NOISE = 26, 82, 8
"""Grey levels of 255: the darkest background, how far it varies, and one of noise's steps."""


class Scenes(NamedTuple):
    """One split."""

    images: np.ndarray
    """(N, SIDE, SIDE) uint8"""
    masks: np.ndarray
    """(N, SIDE, SIDE) uint8: 0, 1 + digit, or 255"""


def read_scenes(*, foreground_only: bool = False) -> LabelledArrays:
    """Return 4,000 training and 400 test images of 32x32 pixels as RGB, with masks of 11 classes.

    foreground_only: the background is ignored too, so that no class outweighs the ten others by
    far; images and classes stay.
    """
    splits = zip(read_levels(), (NUM_TRAIN, NUM_TEST), strict=True)
    train, test = (
        make_scenes(levels, digits, count, seed=2 * _SEED + number)
        for number, ((levels, digits), count) in enumerate(splits)
    )
    if foreground_only:
        for split in (train, test):
            split.masks[split.masks == 0] = IGNORED
    return LabelledArrays(
        _rgb(train.images), train.masks, _rgb(test.images), test.masks, CLASS_NAMES
    )


def _rgb(grey: np.ndarray) -> np.ndarray:
    return grey[..., None].repeat(3, axis=3)


def make_scenes(levels: np.ndarray, digits: np.ndarray, count: int, seed: int) -> Scenes:
    """Put digits, (N, 8, 8) uint8 of levels 0 to 16 with classes (N,), on `count` canvases.

    The first of them are the same for every count.
    """
    words = np.random.Philox(key=seed).random_raw(count * _WORDS).reshape(count, _WORDS)
    noise = np.random.Philox(key=seed, counter=[0, 0, 1, 0]).random_raw(count * SIDE**2 // 2)
    coarse, number, placed = np.split(words, [_COARSE**2, _COARSE**2 + 1], axis=1)
    canvases = _backgrounds((coarse >> np.uint64(56)).astype(np.int64))
    masks = np.zeros(canvases.shape, np.uint8)
    numbers = 1 + number[:, 0] % np.uint64(_MOST_DIGITS)
    enlarging = {size: _weights(8, size) for size in range(_LEAST_SIZE, _MOST_SIZE + 1)}
    draws = placed.reshape(count, _MOST_DIGITS, 5)
    for canvas, mask, many, drawn in zip(canvases, masks, numbers, draws, strict=True):
        for which, size, top, left, strength in drawn[: int(many)].tolist():
            chosen = which % len(levels)
            weights = enlarging[_LEAST_SIZE + size % (_MOST_SIZE - _LEAST_SIZE + 1)]
            ink = weights @ levels[chosen].astype(np.int64) @ weights.T  # 0 ... _FULL
            room = SIDE - len(ink) + 1
            rows = slice(top % room, top % room + len(ink))
            columns = slice(left % room, left % room + len(ink))
            _write(canvas[rows, columns], mask[rows, columns], ink, strength, int(digits[chosen]))
    canvases += _noise(noise).reshape(canvases.shape)
    return Scenes(canvases.clip(0, 255).astype(np.uint8), masks)


def _write(
    canvas: np.ndarray, mask: np.ndarray, ink: np.ndarray, strength: int, digit: int
) -> None:
    """Lay the ink of one digit over its part of a canvas, and its class over that of the mask."""
    grey = 128 + strength % 104
    canvas[:] = np.where(10 * ink > _FULL, ((_FULL - ink) * canvas + ink * grey) // _FULL, canvas)
    mask[4 * ink > _FULL] = IGNORED
    mask[20 * ink > 9 * _FULL] = 1 + digit


def _backgrounds(coarse: np.ndarray) -> np.ndarray:
    """Return (N, SIDE, SIDE) smooth grey levels of (N, 25) random bytes."""
    weights = _weights(_COARSE, SIDE)
    fine = weights @ coarse.reshape(-1, _COARSE, _COARSE) @ weights.T  # 0 ... 255 _ONE**2
    return _FLOOR + _BACKGROUND * fine // (255 * _ONE**2)


def _weights(num_in: int, num_out: int) -> np.ndarray:
    """Return (num_out, num_in) integers that interpolate linearly; each row sums to _ONE."""
    weights = np.zeros((num_out, num_in), np.int64)
    for row in range(num_out):
        # Between pixel centres; what lies beyond the first or the last centre takes its value.
        place = _ONE * (2 * row + 1) * num_in // (2 * num_out) - _ONE // 2
        whole, part = divmod(min(max(place, 0), _ONE * (num_in - 1)), _ONE)
        weights[row, whole] += _ONE - part
        weights[row, min(whole + 1, num_in - 1)] += part
    return weights


def _noise(words: np.ndarray) -> np.ndarray:
    """Return two values a word, each the mean of four bytes about 0: a standard deviation of 18."""
    quarters = words.astype("<u8").view(np.uint8).reshape(-1, 4).astype(np.int64).sum(1) - 510
    return quarters // _NOISE
