"""A stem that starts as the whitening of the data's own patches, as airbench's first layer does.

Of patches p (C k k,) of the images, with covariance Sigma = sum_i lambda_i v_i v_i^T, filter i is

    w_i = v_i / sqrt(lambda_i)        w_i^T Sigma w_j = 1 where i = j, else 0

so outputs at places that padding does not reach have variance 1 and are uncorrelated. The leading
filters see colours and slow gradients, the last ones fine texture that is weak in the images.

Source: Keller Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498), after
tysam-code's hlb-CIFAR10 and David Page's "How to Train Your ResNet". These freeze the layer, add
5e-4 to the eigenvalues and give every filter with both signs, of which a ReLU right behind it makes
use. Here the layer trains, outputs have variance 1 exactly, and a filter is there once: batch norm
stands before the first ReLU, and 24 filters are nearly all of a 3x3 patch's 27 directions.

Shapes: N images of C channels, H x W pixels; k x k the stem's kernel; F filters.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lion_fast.errors import UserError
from lion_fast.init.calibration import batch_statistics, full_precision, unwrapped
from lion_fast.init.state import untouched
from lion_fast.init.variance import WEIGHT_LAYERS

NUM_IMAGES = 2048
"""Training images from which a run takes its patches."""

NUM_PATCHES = 20_000
"""Patches at most, drawn from all positions of all images.

Of 2,048 images of CIFAR-10 so many make filters whose outputs on all 50,000 have variances of 0.91
to 1.07 (bench/results/whitening_patches.csv); five times as many bring 0.93 to 1.06.
"""

# In shares of the largest: below, a direction is the rounding of fp32 pixels, such as the colours
# of grey images are.
_LEAST_EIGENVALUE = 1e-10


def whiten_stem_(
    model: nn.Module, images: Tensor, filters: int = 24, generator: torch.Generator | None = None
) -> nn.Module:
    """Set the first `filters` outputs of the model's first convolution to whiten its patches.

    images: (N, C, H, W) normalised floats, as the model sees them in training. Of their k x k
    patches at most NUM_PATCHES are taken, drawn by `generator` where there are more. Covariance and
    eigenvectors are computed in fp64 on the images' device. Filters come in the order of falling
    eigenvalues, each with its largest weight positive. The stem's other outputs and its bias stay
    as they are, and so does all else.

    The stem is the first layer with weights that runs on the images; to find it, the model runs on
    two of them, which leaves no trace.

    Raises UserError, and changes nothing, unless the stem is a convolution, k x k without groups
    and dilation, of the images themselves with at least `filters` outputs; and where the patches
    are not finite or vary in fewer than `filters` directions.
    """
    stem = find_stem(model, images, filters)
    set_filters_(stem, whitening_filters(images, stem.kernel_size[0], filters, generator))
    return model


def find_stem(model: nn.Module, images: Tensor, filters: int) -> nn.Conv2d:
    """Return the model's stem if these images can whiten it; see `whiten_stem_`, also for errors.

    That the patches vary enough only `whitening_filters` finds out.
    """
    if images.ndim != 4 or not images.is_floating_point() or len(images) < 2:
        raise UserError(
            f"images are {tuple(images.shape)} {images.dtype}: to whiten the stem, give at least 2"
            " normalised ones, (number, channels, height, width)"
        )
    if not images.isfinite().all():
        raise UserError("images to whiten the stem on hold NaN or infinity: give finite ones")
    network = unwrapped(model)
    device = next(network.parameters()).device
    few = images[:2].to(device)
    with _first_weight_layer(network) as found:
        network(few)
    if not found:
        raise UserError(f"{type(network).__name__} runs no layer with weights: none to whiten")
    layer, seen = found[0]
    kind = type(layer).__name__
    if not isinstance(layer, nn.Conv2d):
        raise UserError(f"the stem is a {kind}, and only a Conv2d is whitened: leave whitening out")
    height, width = layer.kernel_size
    if height != width or layer.groups != 1 or tuple(layer.dilation) != (1, 1):
        raise UserError(
            f"the stem is a {height}x{width} convolution in {layer.groups} groups with dilation"
            f" {layer.dilation[0]}, and only square ones without either are whitened: leave"
            " whitening out"
        )
    if seen.shape != few.shape or not torch.equal(seen, few):
        raise UserError("the stem does not read the images themselves: leave whitening out")
    directions = layer.in_channels * height * width
    most = min(layer.out_channels, directions)
    if not 1 <= filters <= most:
        raise UserError(
            f"{filters} filters to whiten, of a stem with {layer.out_channels} outputs on patches"
            f" of {directions} values: give 1 to {most}"
        )
    if height > min(images.shape[2:]):
        raise UserError(
            f"images of {images.shape[2]}x{images.shape[3]} pixels hold no {height}x{width} patch:"
            " leave whitening out"
        )
    return layer


@contextmanager
def _first_weight_layer(network: nn.Module) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Hold, once the network has run inside, its first layer with weights and what that one saw."""
    found: list[tuple[nn.Module, Tensor]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not found:
            found.append((layer, inputs[0].detach().clone()))

    hooks = [
        layer.register_forward_pre_hook(note)
        for layer in network.modules()
        if isinstance(layer, WEIGHT_LAYERS)
    ]
    try:
        with (
            torch.no_grad(),
            full_precision(network),
            untouched(network),
            batch_statistics(network),
        ):
            yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def whitening_filters(
    images: Tensor,
    kernel: int,
    filters: int,
    generator: torch.Generator | None = None,
    num_patches: int = NUM_PATCHES,
) -> Tensor:
    """Return the leading whitening filters (F, C, k, k), fp64, of images (N, C, H, W).

    See `whiten_stem_`, also for errors; `find_stem` has checked the rest.
    """
    patches = _patches(images, kernel, generator, num_patches)
    covariance = patches.flatten(1).T.cov(correction=0)
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)
    enough = eigenvalues > _LEAST_EIGENVALUE * eigenvalues[0]
    if (directions := int(enough.sum())) < filters:
        raise UserError(
            f"{filters} filters to whiten, and these images' {kernel}x{kernel} patches vary in"
            f" {directions} directions: give at most {directions}"
        )
    leading = vectors[:, :filters]
    largest = leading.gather(0, leading.abs().argmax(0, keepdim=True))
    weights = leading * largest.sign() / eigenvalues[:filters].sqrt()
    return weights.T.reshape(filters, *patches.shape[1:])


def set_filters_(stem: nn.Conv2d, weights: Tensor) -> None:
    """Write filters (F, C, k, k) into the stem's first outputs."""
    with torch.no_grad(), full_precision(stem):
        stem.weight[: len(weights)].copy_(weights)


def _patches(
    images: Tensor, kernel: int, generator: torch.Generator | None, num_patches: int
) -> Tensor:
    """Return patches (P, C, k, k), fp64: all where there are no more, else `num_patches`."""
    windows = images.unfold(2, kernel, 1).unfold(3, kernel, 1)  # (N, C, rows, columns, k, k)
    num, _, rows, columns = windows.shape[:4]
    positions = num * rows * columns
    if positions <= num_patches:
        chosen = torch.arange(positions)
    else:
        device = torch.device("cpu") if generator is None else generator.device
        chosen = torch.randint(positions, (num_patches,), generator=generator, device=device)
    chosen = chosen.to(images.device)
    image, row, column = chosen // (rows * columns), chosen // columns % rows, chosen % columns
    return windows[image, :, row, column].double()
