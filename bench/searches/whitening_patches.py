"""Choose how many patches, of how many images, whiten a stem: NUM_PATCHES and NUM_IMAGES.

Filters that whiten a sample of CIFAR-10's patches are applied to all patches of its 50,000 training
images, where their outputs' variance is to be 1 and the correlation of any two 0. For every size of
the sample and three seeds: the least and largest variance of the 24 filters, and the largest
covariance.

    python bench/searches/whitening_patches.py --data-dir DIR
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from lion_fast import ImageSet, TrainConfig, load_image_set
from lion_fast.data.batches import planned_batch
from lion_fast.init.whitening import whitening_filters

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.tables import append_row

KERNEL, FILTERS, SEEDS = 3, 24, (0, 1, 2)
PATCHES = (1_000, 5_000, 20_000, 100_000)
IMAGES = (256, 1_024, 2_048, 8_192)
COLUMNS = ["patches", "images", "seed", "least_variance", "most_variance", "most_covariance"]


def images_at(images: ImageSet, indices: Tensor) -> Tensor:
    """Return the normalised training images (N, 3, H, W) at `indices`."""
    return planned_batch(images, indices, torch.device("cpu"), torch.float32).images


def covariance_of(images: ImageSet, at_once: int = 1_000) -> Tensor:
    """Return the covariance (27, 27) of all patches of the training images, in fp64."""
    count, total, squares = 0, torch.zeros(1), torch.zeros(1)
    for indices in torch.arange(images.num_train).split(at_once):
        patches = torch.nn.functional.unfold(images_at(images, indices).double(), KERNEL)
        patches = patches.transpose(0, 1).flatten(1)  # (27, P)
        count += patches.shape[1]
        total = total + patches.sum(1)
        squares = squares + patches @ patches.T
    mean = total / count
    return squares / count - mean[:, None] * mean


def main() -> None:
    """Measure every size of the sample; write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("bench/results/whitening_patches.csv"))
    options = parser.parse_args()
    images = load_image_set(TrainConfig(dataset="cifar10", data_dir=options.data_dir))
    assert isinstance(images, ImageSet)
    whole = covariance_of(images)
    options.out.unlink(missing_ok=True)
    for patches in PATCHES:
        for num_images in IMAGES:
            for seed in SEEDS:
                generator = torch.Generator().manual_seed(seed)
                chosen = torch.randperm(images.num_train, generator=generator)[:num_images]
                sample = images_at(images, chosen)
                filters = whitening_filters(sample, KERNEL, FILTERS, generator, patches).flatten(1)
                covariance = filters @ whole @ filters.T
                variance = covariance.diagonal()
                others = covariance - torch.diag(variance)
                numbers = (variance.min(), variance.max(), others.abs().max())
                values = (patches, num_images, seed, *(f"{x.item():.3f}" for x in numbers))
                append_row(options.out, COLUMNS, dict(zip(COLUMNS, values, strict=True)))
    print(options.out.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
