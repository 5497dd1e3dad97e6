"""The parameters' kernels: packing them for the maps' dtype, their gradients, and the reduction.

Weight gradients need no order among layers, so they stay out of the backward chain: one launch a
block when its chain is done. Partials lie in the order of the flat gradient, so the reduction adds
up columns and asks for no table. Words and letters as in `statistics.py` and `backward.py`.
"""

import triton
import triton.language as tl

from .backward import _corrected, _correction, _gather
from .statistics import _activate, _as_one, _at, _average_activation, _dot


@triton.jit
def _dense_pack_kernel(
    convs, gammas, betas, weights, affine,
    NUM: tl.constexpr, TAPS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
    BLOCK_IN: tl.constexpr, GAP: tl.constexpr, PADDED_IN: tl.constexpr, PADDED_OUT: tl.constexpr,
    FIRST: tl.constexpr, NORM_CHANNELS: tl.constexpr, NORM_BLOCK_IN: tl.constexpr,
    NORM_GAP: tl.constexpr, NORM_PADDED: tl.constexpr, NORM_FIRST: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Lay NUM convolutions and NUM norms out as the kernels read them. Grid: (2 * NUM, splits).

    Convolution i (OUT, IN, height, width) of TAPS taps, fp32, goes to (TAPS, PADDED_IN, PADDED_OUT)
    from FIRST[i] on, norm i to gamma and beta (2, NORM_PADDED). After BLOCK_IN channels, those that
    came into the block, lie GAP channels of padding; what has no parameter becomes zero.
    """
    i = tl.program_id(0)
    start = tl.program_id(1) * BLOCK
    step = tl.num_programs(1) * BLOCK
    lanes = tl.arange(0, BLOCK)
    if i < NUM:
        source = convs[0]
        taps, outputs, inputs, came_in, gap = TAPS[0], OUT[0], IN[0], BLOCK_IN[0], GAP[0]
        padded_in, padded_out, first = PADDED_IN[0], PADDED_OUT[0], FIRST[0]
        for j in tl.static_range(1, NUM):
            source = tl.where(i == j, convs[j], source)
            taps = tl.where(i == j, TAPS[j], taps)
            outputs = tl.where(i == j, OUT[j], outputs)
            inputs = tl.where(i == j, IN[j], inputs)
            came_in = tl.where(i == j, BLOCK_IN[j], came_in)
            gap = tl.where(i == j, GAP[j], gap)
            padded_in = tl.where(i == j, PADDED_IN[j], padded_in)
            padded_out = tl.where(i == j, PADDED_OUT[j], padded_out)
            first = tl.where(i == j, FIRST[j], first)
        size = taps * padded_in * padded_out
        for at in range(start, size, step):
            x = at + lanes
            n = x % padded_out
            c = x // padded_out % padded_in
            tap = x // (padded_out * padded_in)
            channel = tl.where(c < came_in, c, c - gap)
            exists = (n < outputs) & (channel < inputs) & ((c < came_in) | (c >= came_in + gap))
            if CHANNELS_LAST:
                cell = (n * taps + tap) * inputs + channel
            else:
                cell = (n * inputs + channel) * taps + tap
            w = tl.load(source + cell, mask=exists & (x < size), other=0.0)
            tl.store(weights + first + x, w.to(weights.dtype.element_ty), mask=x < size)
    else:
        gamma, beta = gammas[0], betas[0]
        channels, came_in, gap = NORM_CHANNELS[0], NORM_BLOCK_IN[0], NORM_GAP[0]
        padded, first = NORM_PADDED[0], NORM_FIRST[0]
        for j in tl.static_range(1, NUM):
            gamma = tl.where(i - NUM == j, gammas[j], gamma)
            beta = tl.where(i - NUM == j, betas[j], beta)
            channels = tl.where(i - NUM == j, NORM_CHANNELS[j], channels)
            came_in = tl.where(i - NUM == j, NORM_BLOCK_IN[j], came_in)
            gap = tl.where(i - NUM == j, NORM_GAP[j], gap)
            padded = tl.where(i - NUM == j, NORM_PADDED[j], padded)
            first = tl.where(i - NUM == j, NORM_FIRST[j], first)
        for at in range(start, padded, step):
            c = at + lanes
            channel = tl.where(c < came_in, c, c - gap)
            exists = (channel < channels) & ((c < came_in) | (c >= came_in + gap))
            g = tl.load(gamma + channel, mask=exists, other=0.0)
            b = tl.load(beta + channel, mask=exists, other=0.0)
            tl.store(affine + first + c, g, mask=c < padded)
            tl.store(affine + first + padded + c, b, mask=c < padded)


@triton.jit
def _norm_of(c, affine, statistics, C: tl.constexpr, EPS: tl.constexpr, mask):
    """Scale and shift of channels c whose statistics are known."""
    variance = tl.load(statistics + C + c, mask=mask, other=0.0)
    scale = tl.load(affine + c, mask=mask, other=0.0) / tl.sqrt(variance + EPS)
    mean = tl.load(statistics + c, mask=mask, other=0.0)
    return _as_one(scale, tl.load(affine + C + c, mask=mask, other=0.0) - mean * scale)


@triton.jit
def _layer_weights(
    map, statistics, affine, dout, columns, program, u, c,
    H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, C: tl.constexpr, IN: tl.constexpr,
    PADDED_IN: tl.constexpr, K: tl.constexpr, TAP_K: tl.constexpr, EPS: tl.constexpr,
    PROGRAMS: tl.constexpr, TILES: tl.constexpr, P: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Compute columns[tap, output, c] = im2col(dout of layer u)^T @ relu(norm(map))."""
    read = PADDED_IN + K * u
    mask = c < read
    exists = mask & ((c < IN) | (c >= PADDED_IN))
    channel = tl.where(c < IN, c, c - (PADDED_IN - IN))
    channels = IN + K * u
    k_most = tl.arange(0, 8 * K)
    k_rest = 8 * K + tl.arange(0, TAP_K)
    scale, shift = _norm_of(c, affine + u * (2 * C), statistics, C, EPS, mask)
    most = tl.zeros([8 * K, c.shape[0]], tl.float32)
    rest = tl.zeros([TAP_K, c.shape[0]], tl.float32)
    dout += u * (K * N)
    for tile in range(program, TILES, PROGRAMS):
        p = tile * P + tl.arange(0, P)
        row = p // W % H
        col = p % W
        x = tl.load(map + _at(p, c, N), mask=mask[None, :], other=0.0)
        a = _activate(x, scale, shift)
        d_most = _gather(dout, p, row, col, k_most, H, W, K, N)
        d_rest = _gather(dout, p, row, col, k_rest, H, W, K, N)
        most = _dot(tl.trans(d_most), a, most)
        rest = _dot(tl.trans(d_rest), a, rest)
    # Layers 0 ... u - 1 have 9 K (IN + K j) weights.
    columns += 9 * K * (u * IN + K * u * (u - 1) // 2)
    STEP_C: tl.constexpr = 1 if CHANNELS_LAST else 9
    step_tap = channels if CHANNELS_LAST else 1
    cell = (k_most % K * 9 * channels + k_most // K * step_tap)[:, None]
    tl.store(columns + cell + (channel * STEP_C)[None, :], most, mask=exists[None, :])
    cell = (k_rest % K * 9 * channels + k_rest // K * step_tap)[:, None]
    in_weights = (k_rest < 9 * K)[:, None] & exists[None, :]
    tl.store(columns + cell + (channel * STEP_C)[None, :], rest, mask=in_weights)


@triton.jit
def _transition_weights(
    map, statistics, affine, dout, columns, program, c,
    W: tl.constexpr, N: tl.constexpr, C: tl.constexpr, IN: tl.constexpr, PADDED_IN: tl.constexpr,
    OUT: tl.constexpr, PADDED_OUT: tl.constexpr, BLOCK_OUT: tl.constexpr, EPS: tl.constexpr,
    PROGRAMS: tl.constexpr, TILES: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """columns[output, channel] of the 1x1 convolution, dout (PADDED_OUT / 8, N / 4, 8)."""
    mask = c < C
    exists = mask & ((c < IN) | (c >= PADDED_IN))
    channel = tl.where(c < IN, c, c - (PADDED_IN - IN))
    n = tl.arange(0, BLOCK_OUT)
    scale, shift = _norm_of(c, affine, statistics, C, EPS, mask)
    total = tl.zeros([BLOCK_OUT, c.shape[0]], tl.float32)
    for tile in range(program, TILES, PROGRAMS):
        q = tile * P + tl.arange(0, P)
        p = q // (W // 2) * (2 * W) + q % (W // 2) * 2
        a = _average_activation(map, p, c, scale, shift, C, W, N).to(map.dtype.element_ty)
        d = tl.load(dout + _at(q, n, N // 4), mask=(n < PADDED_OUT)[None, :], other=0.0)
        total = _dot(tl.trans(d), a, total)
    cell = n[:, None] * (C - PADDED_IN + IN) + channel[None, :]
    tl.store(columns + cell, total, mask=(n < OUT)[:, None] & exists[None, :])


@triton.jit
def _stem_weights(
    images, map, statistics, raw, partials, columns, program, c,
    H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, C: tl.constexpr,
    OUT: tl.constexpr, PADDED_OUT: tl.constexpr, NUM_PARTS: tl.constexpr, EPS: tl.constexpr,
    PROGRAMS: tl.constexpr, TILES: tl.constexpr, P: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """columns[tap, colour, output c] of the stem, whose gradient is corrected as it is read."""
    k = tl.arange(0, 32)  # tap * 3 + colour
    dh = k // 9 - 1
    dw = k // 3 % 3 - 1
    m, a, b = _correction(c, statistics, partials, PADDED_OUT, C, NUM_PARTS, N, EPS)
    total = tl.zeros([32, c.shape[0]], tl.float32)
    for tile in range(program, TILES, PROGRAMS):
        p = tile * P + tl.arange(0, P)
        row = (p // W % H)[None, :] + dh[:, None]
        col = (p % W)[None, :] + dw[:, None]
        inside = (row >= 0) & (row < H) & (col >= 0) & (col < W) & (k < 27)[:, None]
        at = (p * 3)[None, :] + ((dh * W + dw) * 3 + k % 3)[:, None]
        x = tl.load(images + at, mask=inside, other=0.0)
        d = _corrected(raw, map, p, c, (c < PADDED_OUT)[None, :], m, a, b, N)
        total = _dot(x, d, total)
    cell = k if CHANNELS_LAST else k % 3 * 9 + k // 3
    at = cell[:, None] + (c * 27)[None, :]
    tl.store(columns + at, total, mask=(k < 27)[:, None] & (c < OUT)[None, :])


@triton.jit
def _dense_weights_bwd_kernel(
    map, statistics, affine, dout, end_dout, images, raw_input, partials_input, columns,
    H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, C: tl.constexpr, IN: tl.constexpr,
    PADDED_IN: tl.constexpr, K: tl.constexpr, TAP_K: tl.constexpr, LAYERS: tl.constexpr,
    EPS: tl.constexpr, PROGRAMS: tl.constexpr, TILES: tl.constexpr, P: tl.constexpr,
    CW: tl.constexpr, COLUMNS: tl.constexpr, FIRST: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    END_C: tl.constexpr, END_PADDED: tl.constexpr, END_BLOCK: tl.constexpr,
    END_FIRST: tl.constexpr, END_TILES: tl.constexpr, END_P: tl.constexpr,
    HAS_STEM: tl.constexpr, INPUT_PARTS: tl.constexpr,
):  # fmt: skip
    """Make partials of a block's weight gradients, and of its transition's and the stem's.

    Grid: (PROGRAMS, LAYERS + transition + stem, cdiv(C, CW) slices of channels). columns:
    (PROGRAMS, COLUMNS), of which the layers' start at FIRST and the transition's at END_FIRST.
    """
    program = tl.program_id(0)
    what = tl.program_id(1)
    slice = tl.program_id(2)
    c = slice * CW + tl.arange(0, CW)
    columns += program * COLUMNS
    if what < LAYERS:
        if slice * CW < PADDED_IN + K * what:
            _layer_weights(
                map, statistics, affine, dout, columns + FIRST, program, what, c,
                H, W, N, C, IN, PADDED_IN, K, TAP_K, EPS, PROGRAMS, TILES, P, CHANNELS_LAST,
            )  # fmt: skip
    elif (what == LAYERS) & (END_C > 0):
        if END_C > 0:
            _transition_weights(
                map, statistics, affine + LAYERS * (2 * C), end_dout, columns + END_FIRST,
                program, c, W, N, C, IN, PADDED_IN, END_C, END_PADDED, END_BLOCK, EPS,
                PROGRAMS, END_TILES, END_P,
            )  # fmt: skip
    else:
        if HAS_STEM:
            if slice * CW < PADDED_IN:
                _stem_weights(
                    images, map, statistics, raw_input, partials_input, columns, program, c,
                    H, W, N, C, IN, PADDED_IN, INPUT_PARTS, EPS,
                    PROGRAMS, TILES, P, CHANNELS_LAST,
                )  # fmt: skip


@triton.jit
def _dense_reduce_kernel(
    partials, grads,
    NUM: tl.constexpr, FIRST_PROGRAM: tl.constexpr, START: tl.constexpr, ROWS: tl.constexpr,
    STRIDE: tl.constexpr, WIDTH: tl.constexpr, OUT: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """grads[OUT[s] + x] = sum over the rows of matrix s of column x: one order, whoever runs it.

    Matrix s of partials (ROWS[s], WIDTH[s]), rows STRIDE[s] apart, starts at START[s]; its programs
    are FIRST_PROGRAM[s] and on, BLOCK columns each. Grid: (sum of cdiv(WIDTH, BLOCK),).
    """
    program = tl.program_id(0)
    begin, start, rows = FIRST_PROGRAM[0], START[0], ROWS[0]
    stride, width, out = STRIDE[0], WIDTH[0], OUT[0]
    for s in tl.static_range(1, NUM):
        later = program >= FIRST_PROGRAM[s]
        begin = tl.where(later, FIRST_PROGRAM[s], begin)
        start = tl.where(later, START[s], start)
        rows = tl.where(later, ROWS[s], rows)
        stride = tl.where(later, STRIDE[s], stride)
        width = tl.where(later, WIDTH[s], width)
        out = tl.where(later, OUT[s], out)
    x = (program - begin) * BLOCK + tl.arange(0, BLOCK)
    i = tl.arange(0, BLOCK_ROWS)
    total = tl.zeros([BLOCK_ROWS, BLOCK], tl.float32)
    for r in range(0, rows, BLOCK_ROWS):
        mask = (r + i < rows)[:, None] & (x < width)[None, :]
        cell = (start + (r + i) * stride)[:, None] + x[None, :]
        total += tl.load(partials + cell, mask=mask, other=0.0)
    tl.store(grads + out + x, tl.sum(total, 0), mask=x < width)
