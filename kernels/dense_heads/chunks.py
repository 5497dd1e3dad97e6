"""dense_supervision_loss over blocks of positions: no more logits in memory than of one block.

The forward reads each map once and keeps, of all logits, a few sums a class; the backward reads the
map again, makes the block's logits anew and writes the map's gradient where it stays. Blocks follow
one another in a fixed order and sums of blocks are kept in fp64, so the same inputs give the same
bits.

    d loss / d z_k = a (q_k - [y = k]) weight_y + q_k (r_k - sum over j of q_j r_j)
    r_k = (d loss / d dice_k) (2 [y = k] - dice_k) / (ours_k + theirs_k + smooth)

with logits z, q = softmax(z), and a = loss_weight / (sum of the valid positions' class weights).

Shape letters as in `op.py`; D is B, or 1 where Dice is of all images as one.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .options import Labels, Options, labels_of_level

# What a block's own tensors may take: the cache of a core, or enough work for a GPU. Not measured
# on any GPU yet.
_WORKSPACE_BYTES = {"cuda": 2**26}
_DEFAULT_WORKSPACE = 2**21
_LEAST_POSITIONS = 256


class DenseForward(NamedTuple):
    """What the forward returns: `DenseLosses`, and what the backward needs."""

    loss: Tensor
    """()"""
    per_head: Tensor
    """(H,)"""
    correct: Tensor
    """(H,) int64"""
    valid: Tensor
    """(H,) int64"""
    dice: Tensor
    """(H, K)"""
    weight_sums: Tensor
    """(H,) float64: of the valid positions' class weights"""
    coefficients: Tensor
    """(H, D, K) float64: soft Dice of each class; (H, 0, K) without Dice"""
    denominators: Tensor
    """(H, D, K) float64: what it was divided by"""


def empty_forward(
    features: Sequence[Tensor], weights: Sequence[Tensor], options: Options
) -> DenseForward:
    """Return the forward's outputs, not filled in."""
    num_heads, num_classes, like = len(features), weights[0].shape[0], features[0]
    images = (1 if options.batch_dice else like.shape[0]) if options.dice else 0
    dtype = torch.promote_types(like.dtype, torch.float32)

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=like.device)

    return DenseForward(
        empty(dtype=dtype),
        empty(num_heads, dtype=dtype),
        empty(num_heads, dtype=torch.int64),
        empty(num_heads, dtype=torch.int64),
        empty(num_heads, num_classes, dtype=dtype),
        empty(num_heads, dtype=torch.float64),
        empty(num_heads, images, num_classes, dtype=torch.float64),
        empty(num_heads, images, num_classes, dtype=torch.float64),
    )


class _Block(NamedTuple):
    """Some positions of some images of one level."""

    images: slice
    positions: slice
    x: Tensor
    """(b, C, p) in the arithmetic's dtype"""
    z: Tensor
    """(b, K, p) logits"""
    labels: Labels
    """of (b, p)"""
    is_class: Tensor
    """(b, K, p) bool: the valid positions' own class"""

    def shares(self, log_total: Tensor) -> Tensor:
        """Return softmax(z), (b, K, p), where z is not needed any more."""
        return self.z.sub_(log_total[:, None]).exp_()


class _Level:
    """One head's map, read in blocks."""

    def __init__(
        self, feature: Tensor, weight: Tensor, bias: Tensor, target: Tensor, options: Options
    ) -> None:
        self.feature, self.options = feature, options
        self.dtype = torch.promote_types(feature.dtype, torch.float32)
        self.weight, self.bias = weight.to(self.dtype), bias.to(self.dtype)[:, None]
        self.labels = labels_of_level(target, feature.shape[2:], options.sampling).flatten(1)
        self.classes = torch.arange(len(weight), device=feature.device)[:, None]

    def blocks(self) -> Iterator[_Block]:
        """Yield all positions, several small images or part of a large one at a time."""
        num_images, num_positions = self.labels.shape
        num_classes, channels = self.weight.shape
        workspace = _WORKSPACE_BYTES.get(self.feature.device.type, _DEFAULT_WORKSPACE)
        values = 3 * channels + 5 * num_classes + 8  # a position's, in the backward with Dice
        most = max(_LEAST_POSITIONS, workspace // (values * self.weight.element_size()))
        per_block = max(1, most // num_positions)
        for first in range(0, num_images, per_block):
            images = slice(first, min(first + per_block, num_images))
            # A view, but of maps whose positions do not follow one another.
            x = self.feature[images].flatten(2)
            for start in range(0, num_positions, most):
                positions = slice(start, min(start + most, num_positions))
                yield self._block(images, positions, x[:, :, positions].to(self.dtype))

    def _block(self, images: slice, positions: slice, x: Tensor) -> _Block:
        labels = Labels.of(
            self.labels[images, positions], len(self.weight), self.options.ignore_index
        )
        is_class = (labels.classes[:, None] == self.classes) & labels.valid[:, None]
        z = torch.matmul(self.weight, x).add_(self.bias)
        return _Block(images, positions, x, z, labels, is_class)


def _weights_at(labels: Labels, class_weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return each position's weight in the cross-entropy, 0 where it is ignored."""
    valid = labels.valid.to(dtype)
    if class_weights is None:
        return valid
    return valid * class_weights.to(dtype)[labels.classes]


def chunked_forward(
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    target: Tensor,
    loss_weights: Tensor,
    class_weights: Tensor | None,
    options: Options,
) -> DenseForward:
    """Compute the losses of every head, reading each map once."""
    out = empty_forward(features, weights, options)
    for h, parts in enumerate(zip(features, weights, biases, strict=True)):
        _level_forward(out, h, _Level(*parts, target, options), class_weights, options)
    out.loss.copy_((out.per_head * loss_weights.to(out.per_head.dtype)).sum())
    return out


def _level_forward(
    out: DenseForward, h: int, level: _Level, class_weights: Tensor | None, options: Options
) -> None:
    num_images, num_classes = len(level.labels), len(level.weight)
    device = level.feature.device
    total, weight_sum = torch.zeros(2, dtype=torch.float64, device=device).unbind()
    hits, count = torch.zeros(2, dtype=torch.int64, device=device).unbind()
    sums = torch.zeros(3, num_images, num_classes, dtype=torch.float64, device=device)
    for block in level.blocks():
        labels = block.labels
        counted = labels.counted(options)
        # `argmax` takes the same, the first of several, six times as long on a CPU.
        best = block.z.max(1).indices
        hits += ((best == labels.classes) & counted).sum()
        count += counted.sum()
        log_total = block.z.logsumexp(1)
        own = block.z.gather(1, labels.classes[:, None])[:, 0]
        at = _weights_at(labels, class_weights, level.dtype)
        losses = (
            ((log_total - own) * at).where(labels.valid, 0).masked_fill(labels.wrong, torch.nan)
        )
        total += losses.sum()
        weight_sum += at.sum()
        if options.dice:
            shares = block.shares(log_total).where(labels.valid[:, None], 0)
            sums[1, block.images] += shares.sum(2)
            sums[0, block.images] += shares.mul_(block.is_class).sum(2)
            sums[2, block.images] += block.is_class.sum(2)
    loss = total / torch.where(weight_sum > 0, weight_sum, 1)
    out.dice[h].fill_(torch.nan)
    if options.dice:
        both, ours, theirs = sums.sum(1, keepdim=True) if options.batch_dice else sums
        out.denominators[h].copy_((ours + theirs + options.smooth).clamp_(min=1e-8))
        out.coefficients[h].copy_((2 * both + options.smooth) / out.denominators[h])
        out.dice[h].copy_(out.coefficients[h].mean(0))
        mean = out.coefficients[h, :, options.first_class :].mean()
        loss = loss + options.dice * (1 - mean)
    out.per_head[h].copy_(loss)
    out.correct[h].copy_(hits)
    out.valid[h].copy_(count)
    out.weight_sums[h].copy_(weight_sum)


def empty_gradients(
    features: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return tensors for the gradients of maps, weights and biases, not filled in."""
    maps = []
    for feature in features:
        last = torch.channels_last if feature.ndim == 4 else torch.channels_last_3d
        is_last = feature.is_contiguous(memory_format=last) and not feature.is_contiguous()
        layout = last if is_last else torch.contiguous_format
        maps.append(torch.empty_like(feature, memory_format=layout))
    return maps, [torch.empty_like(w) for w in weights], [torch.empty_like(b) for b in biases]


def chunked_backward(
    grad_loss: Tensor,
    features: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    target: Tensor,
    loss_weights: Tensor,
    class_weights: Tensor | None,
    weight_sums: Tensor,
    coefficients: Tensor,
    denominators: Tensor,
    options: Options,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the gradients of every map, weight and bias, reading each map once more."""
    d_maps, d_weights, d_biases = empty_gradients(features, weights, biases)
    for h, parts in enumerate(zip(features, weights, biases, strict=True)):
        level = _Level(*parts, target, options)
        scale = (grad_loss * loss_weights[h]).double()
        of_mean = scale / torch.where(weight_sums[h] > 0, weight_sums[h], 1)
        pull = None
        if options.dice:
            pull = _pull_of_dice(scale, coefficients[h], denominators[h], options).to(level.dtype)
        d_map = d_maps[h].view(*level.labels.shape[:1], level.weight.shape[1], -1)
        d_weight, d_bias = (
            torch.zeros_like(each, dtype=torch.float64) for each in (level.weight, level.bias)
        )
        for block in level.blocks():
            d_logits = _d_logits(block, of_mean.to(level.dtype), class_weights, pull)
            d_map[block.images, :, block.positions] = torch.matmul(level.weight.T, d_logits)
            rows = d_logits.transpose(0, 1).flatten(1)
            d_weight += rows @ block.x.transpose(0, 1).flatten(1).T
            d_bias += rows.sum(1, keepdim=True)
        d_weights[h].copy_(d_weight)
        d_biases[h].copy_(d_bias[:, 0])
    return d_maps, d_weights, d_biases


def _pull_of_dice(
    scale: Tensor, coefficients: Tensor, denominators: Tensor, options: Options
) -> Tensor:
    """Return the parts of r in the own class and in every class, (2, D, K); see the docstring."""
    every = scale * options.dice / denominators
    every[:, : options.first_class] = 0
    every /= len(coefficients) * (coefficients.shape[1] - options.first_class)
    return torch.stack((-2 * every, every * coefficients))


def _d_logits(
    block: _Block, of_mean: Tensor, class_weights: Tensor | None, pull: Tensor | None
) -> Tensor:
    """Return the gradient of the block's logits, (b, K, p)."""
    labels, is_class = block.labels, block.is_class
    at = _weights_at(labels, class_weights, block.z.dtype) * of_mean
    shares = block.shares(block.z.logsumexp(1))
    from_dice = None
    if pull is not None:
        own, every = (p if p.shape[0] == 1 else p[block.images] for p in pull)
        r = every[:, :, None] + own[:, :, None] * is_class
        from_dice = r.sub_((shares * r).sum(1, keepdim=True)).mul_(shares)
    gradient = shares.sub_(is_class.to(shares.dtype)).mul_(at[:, None])
    if from_dice is not None:
        gradient = gradient.add_(from_dice)
    # Where a map holds infinities under ignored positions, too.
    return gradient.where(labels.valid[:, None], 0)
