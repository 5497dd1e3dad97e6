"""From disk, download or embedded data to an ImageSet in memory."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """A labelled set of equally sized RGB images, split for training and testing, on the CPU."""

    name: str
    train_images: Tensor
    """(N, H, W, 3) uint8"""
    train_labels: Tensor
    """(N,) int64, 0 <= label < num_classes"""
    test_images: Tensor
    """(M, H, W, 3) uint8"""
    test_labels: Tensor
    """(M,) int64"""
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    """Per-channel mean of the training images, in units of full scale (0 to 1)."""
    std: tuple[float, float, float]
    """Per-channel standard deviation of the training images' pixels, in the same units."""
    num_skipped: int = 0
    """Unreadable images left out."""

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train_images.shape[1], self.train_images.shape[2]
