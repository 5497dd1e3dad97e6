"""Batch statistics that every reader of a channel shares, and what all kernels of a block need.

In training every norm of a dense block normalises a shared channel with the same mean and variance,
so each channel's are made once, by the kernel that makes the channel. They travel as partials: per
program the mean and the sum of squared deviations of what it wrote, of the rounded values, centred
tile by tile and merged by Chan's formula (Chan, Golub, LeVeque 1979). The kernel that reads the
channel first combines the programs' in its prologue, in one fixed order, and its program 0 writes
the result for the kernels to come: no atomics and no launch.

Letters: P positions of a tile, N positions of all images, C channels counted in padded groups of 8,
K channels of a chunk of a sum. A map is (C / 8, N, 8); element (p, c) is at _at(p, c).
"""

import triton
import triton.language as tl


@triton.jit
def _at(p, c, N: tl.constexpr):
    """Offsets (P, C) of positions p and channels c in a map of N positions."""
    return (p * 8)[:, None] + (c // 8 * (8 * N) + c % 8)[None, :]


@triton.jit
def _dot(a, b, acc):
    # Of fp32 maps, which only the interpreter is given: TF32 would leave three digits.
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _accumulate(y, t, spread, mean, between, P: tl.constexpr):
    """Add tile number t, y (P, C) fp32, to a program's statistics; returns them and its mean.

    spread: (P, C) squared deviations from each tile's own mean, summed over P at the end only.
    """
    m = tl.sum(y, 0) / P
    spread += (y - m[None, :]) * (y - m[None, :])
    d = m - mean
    mean += d / (t + 1)
    between += d * d * (P * t / (t + 1))
    return spread, mean, between, m


@triton.jit
def _combined(
    partials, columns, inside, WIDTH: tl.constexpr, NUM_PARTS: tl.constexpr, EACH: tl.constexpr
):
    """Mean and variance of columns of partials (2, NUM_PARTS, WIDTH), each part of EACH values."""
    ROWS: tl.constexpr = min(triton.next_power_of_2(NUM_PARTS), 256)
    i = tl.arange(0, ROWS)
    # Deviations from the first part's mean: sums of squares of the means would cancel.
    pivot = tl.load(partials + columns, mask=inside, other=0.0)
    total = tl.zeros([ROWS, columns.shape[0]], tl.float32)
    squares = tl.zeros([ROWS, columns.shape[0]], tl.float32)
    within = tl.zeros([ROWS, columns.shape[0]], tl.float32)
    for r in tl.static_range(0, NUM_PARTS, ROWS):
        cell = (r + i)[:, None] * WIDTH + columns[None, :]
        mask = (r + i < NUM_PARTS)[:, None] & inside[None, :]
        means = tl.load(partials + cell, mask=mask, other=0.0)
        within += tl.load(partials + NUM_PARTS * WIDTH + cell, mask=mask, other=0.0)
        d = tl.where(mask, means - pivot[None, :], 0.0)
        total += d
        squares += d * d
    shift = tl.sum(total, 0) / NUM_PARTS
    between = tl.maximum(tl.sum(squares, 0) - NUM_PARTS * shift * shift, 0.0)
    return pivot + shift, (tl.sum(within, 0) + EACH * between) / (NUM_PARTS * EACH)


@triton.jit
def _statistics(
    c, statistics, partials, has_new,
    C: tl.constexpr, NEW: tl.constexpr, WIDTH: tl.constexpr,
    NUM_PARTS: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """Mean and variance of channels c: from statistics (2, C), or from their producer's partials.

    Of the partials are channels NEW ... NEW + WIDTH - 1: all of them for a block's first reader,
    whose NEW is 0, and a layer's output after that. c starts at a multiple of WIDTH then.
    """
    mean = tl.load(statistics + c, mask=c < NEW, other=0.0)
    variance = tl.load(statistics + C + c, mask=c < NEW, other=0.0)
    if has_new:
        if NEW == 0:
            m, v = _combined(partials, c, c < WIDTH, WIDTH, NUM_PARTS, EACH)
        else:
            # Combine WIDTH columns, then repeat them along the chunk: column (c - NEW) % WIDTH.
            column = (tl.arange(0, WIDTH) + (WIDTH - NEW % WIDTH)) % WIDTH
            m, v = _combined(partials, column, column < WIDTH, WIDTH, NUM_PARTS, EACH)
            m = tl.broadcast_to(m[None, :], [c.shape[0] // WIDTH, WIDTH])
            m = tl.reshape(m, [c.shape[0]])
            v = tl.broadcast_to(v[None, :], [c.shape[0] // WIDTH, WIDTH])
            v = tl.reshape(v, [c.shape[0]])
        is_new = (c >= NEW) & (c < NEW + WIDTH)
        mean = tl.where(is_new, m, mean)
        variance = tl.where(is_new, v, variance)
        if tl.program_id(0) == 0:
            tl.store(statistics + c, mean, mask=is_new)
            tl.store(statistics + C + c, variance, mask=is_new)
    return mean, variance


@triton.jit
def _as_one(value, derived):
    """Return both, of one shape, as halves of one tensor: where `derived` is made of `value`.

    Readers want them in another layout. Apart, Triton 3.6 makes `derived` anew there out of the
    converted `value`, which may come later in the program, and then refuses what it made.
    """
    return tl.split(tl.join(value, derived))


@triton.jit
def _affine(
    c, affine, statistics, partials, has_new,
    C: tl.constexpr, NEW: tl.constexpr, WIDTH: tl.constexpr,
    NUM_PARTS: tl.constexpr, EACH: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """Scale and shift of channels c under one norm, affine (2, C) of gamma and beta.

    scale is never 0, so that `_border` always becomes 0 behind the ReLU.
    """
    mean, variance = _statistics(c, statistics, partials, has_new, C, NEW, WIDTH, NUM_PARTS, EACH)
    scale = tl.load(affine + c, mask=c < C, other=0.0) / tl.sqrt(variance + EPS)
    scale = tl.where(tl.abs(scale) < 1e-30, 1e-30, scale)
    return _as_one(scale, tl.load(affine + C + c, mask=c < C, other=0.0) - mean * scale)


@triton.jit
def _border(scale, dtype: tl.constexpr):
    """Return what to read outside a map: relu(scale * it + shift) = 0, with no select."""
    return tl.where(scale > 0, float("-inf"), float("inf")).to(dtype)


@triton.jit
def _activate(x, scale, shift):
    """relu(x * scale + shift) in x's dtype. x (P, K); scale, shift (K,) fp32."""
    return tl.maximum(x.to(tl.float32) * scale[None, :] + shift[None, :], 0.0).to(x.dtype)


@triton.jit
def _average_activation(
    map, p, c, scale, shift, C: tl.constexpr, W: tl.constexpr, N: tl.constexpr
):  # fmt: skip
    """Average of the activation over the 2x2 positions from p on: (P, K) fp32."""
    total = tl.zeros([p.shape[0], c.shape[0]], tl.float32)
    for tap in tl.static_range(4):
        q = p + (tap // 2 * W + tap % 2)
        x = tl.load(map + _at(q, c, N), mask=(c < C)[None, :], other=0.0)
        total += tl.maximum(x.to(tl.float32) * scale[None, :] + shift[None, :], 0.0)
    return 0.25 * total


@triton.jit(do_not_specialize=["momentum"])
def _dense_running_statistics_kernel(
    means, variances, statistics, momentum,
    NUM: tl.constexpr, C: tl.constexpr, IN: tl.constexpr, PADDED_IN: tl.constexpr,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute running += momentum * (batch - running), the batch's variance unbiased.

    Grid: (NUM norms,). Norm i has C[i] channels, of which IN[i] came into its block; the block's
    statistics (2, WIDTH[i]) of N[i] positions start at FIRST[i].
    """
    i = tl.program_id(0)
    running_mean, running_variance = means[0], variances[0]
    channels, came_in, padded_in = C[0], IN[0], PADDED_IN[0]
    first, width, positions = FIRST[0], WIDTH[0], N[0]
    for j in tl.static_range(1, NUM):
        running_mean = tl.where(i == j, means[j], running_mean)
        running_variance = tl.where(i == j, variances[j], running_variance)
        channels = tl.where(i == j, C[j], channels)
        came_in = tl.where(i == j, IN[j], came_in)
        padded_in = tl.where(i == j, PADDED_IN[j], padded_in)
        first = tl.where(i == j, FIRST[j], first)
        width = tl.where(i == j, WIDTH[j], width)
        positions = tl.where(i == j, N[j], positions)
    c = tl.arange(0, BLOCK)
    mask = c < channels
    source = statistics + first + tl.where(c < came_in, c, c + padded_in - came_in)
    mean = tl.load(source, mask=mask, other=0.0)
    variance = tl.load(source + width, mask=mask, other=0.0) * (positions / (positions - 1.0))
    old = tl.load(running_mean + c, mask=mask, other=0.0)
    tl.store(running_mean + c, old + momentum * (mean - old), mask=mask)
    old = tl.load(running_variance + c, mask=mask, other=0.0)
    tl.store(running_variance + c, old + momentum * (variance - old), mask=mask)
