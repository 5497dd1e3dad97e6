"""Masks as pictures: a palette, PNG files of predicted ones, and masks.png of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lion_fast.data.arrays import IGNORED
from lion_fast.data.decode import image_file_size
from lion_fast.figures import INK, new_figure, save
from lion_fast.training.folder.files import disk_advice, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_DRAWN = 4
"""Test images in masks.png."""


def palette() -> np.ndarray:
    """Return (256, 3) uint8 colours that tell neighbours apart, as Pascal VOC's: 0 is black.

    IGNORED is VOC's own, a pale grey.
    """
    colours = np.zeros((256, 3), np.uint8)
    numbers = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((numbers >> channel) & 1) << (7 - bit)).astype(np.uint8)
        numbers >>= 3
    return colours


class MaskFolder:
    """Writes the masks of one call, each under the name of its image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._taken: set[str] = set()

    def write(self, image: Path, mask: np.ndarray) -> Path:
        """Write classes (H, W) uint8 in the size of the image file; return where.

        A mask of an earlier call is replaced; two images of one name get masks of two. Raises
        DiskError where that cannot be done.
        """
        name, number = f"{image.stem}.png", 1
        while name in self._taken:
            number += 1
            name = f"{image.stem}-{number}.png"
        self._taken.add(name)
        height, width = image_file_size(image)
        picture = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
        picture.putpalette(palette().tobytes())
        path = self.path / name
        with disk_advice(path):
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: picture.save(file, "PNG"))
        return path


def plot_masks(
    images: np.ndarray,
    truth: np.ndarray,
    levels: Sequence[np.ndarray],
    class_names: Sequence[str],
    path: Path,
) -> None:
    """Draw a row an image to `path` as PNG: image, truth, and what each head says, the main first.

    images: (B, H, W, 3) uint8. truth and each of levels, coarse to fine with the main head's last:
    (B, H, W) uint8.
    """
    colours = palette()
    colours[IGNORED] = 255
    *aux, main = levels
    titles = ["image", "truth", "main head", *(f"head {h}" for h in reversed(range(len(aux))))]
    columns = [images, *(colours[mask] for mask in (truth, main, *reversed(aux)))]
    figure = new_figure(1.3 * len(columns), 1.3 * len(images) + 0.5)
    axes = figure.subplots(len(images), len(columns), squeeze=False)
    for row, line in enumerate(axes):
        for title, axis, pictures in zip(titles, line, columns, strict=True):
            axis.imshow(pictures[row], interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(title, fontsize=9, color=INK)
    shown = sorted(set(np.unique(truth)) | set(np.unique(np.stack(levels))))
    handles = [(colours[k] / 255, class_names[k]) for k in shown if k < len(class_names)]
    _name_colours(figure, handles)
    save(figure, path)


def _name_colours(figure: "Figure", named: Sequence[tuple[np.ndarray, str]]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=(r, g, b), edgecolor=INK, label=name) for (r, g, b), name in named]
    figure.legend(
        handles=patches, loc="outside lower center", ncols=min(6, len(patches)), fontsize=7,
        frameon=False,
    )  # fmt: skip
