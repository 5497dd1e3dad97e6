"""The forward kernels of dense_backbone: stem, layers, transitions, pooled taps.

Each makes channels, their partial statistics, and per image the means that pooled taps are made of:
blocks 1 and 2 are never read again for pooling. Words and letters as in `statistics.py`.
"""

# A tuple grows in a static loop, which Triton unrolls and mypy does not.
# mypy: disable-error-code="assignment"

import triton
import triton.language as tl

from .statistics import _accumulate, _activate, _affine, _at, _average_activation, _border, _dot


@triton.jit
def _dense_stem_kernel(
    images, weights, map, partials, tile_means,
    H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, OUT: tl.constexpr, BLOCK_OUT: tl.constexpr,
    PROGRAMS: tl.constexpr, TILES: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """map[0 ... OUT] = conv3x3(images), images (B, H, W, 3) in memory. Grid: (PROGRAMS,).

    weights: (9, 3, OUT).
    """
    program = tl.program_id(0)
    k = tl.arange(0, 32)  # tap * 3 + colour
    n = tl.arange(0, BLOCK_OUT)
    in_weights = (k < 27)[:, None] & (n < OUT)[None, :]
    w = tl.load(weights + k[:, None] * OUT + n[None, :], mask=in_weights, other=0.0)
    dh = k // 9 - 1
    dw = k // 3 % 3 - 1
    spread = tl.zeros([P, BLOCK_OUT], tl.float32)
    mean = tl.zeros([BLOCK_OUT], tl.float32)
    between = tl.zeros([BLOCK_OUT], tl.float32)
    for t in range(TILES):
        tile = program * TILES + t
        p = tile * P + tl.arange(0, P)
        row = (p // W % H)[:, None] + dh[None, :]
        col = (p % W)[:, None] + dw[None, :]
        inside = (row >= 0) & (row < H) & (col >= 0) & (col < W) & (k < 27)[None, :]
        at = (p * 3)[:, None] + ((dh * W + dw) * 3 + k % 3)[None, :]
        x = tl.load(images + at, mask=inside, other=0.0)
        y = _dot(x, w, tl.zeros([P, BLOCK_OUT], tl.float32)).to(map.dtype.element_ty)
        tl.store(map + _at(p, n, N), y, mask=(n < OUT)[None, :])
        spread, mean, between, m = _accumulate(y.to(tl.float32), t, spread, mean, between, P)
        tl.store(tile_means + tile * OUT + n, m, mask=n < OUT)
    tl.store(partials + program * OUT + n, mean, mask=n < OUT)
    tl.store(partials + (PROGRAMS + program) * OUT + n, tl.sum(spread, 0) + between, mask=n < OUT)


@triton.jit
def _nine_weights(
    weights, c, READ: tl.constexpr, C: tl.constexpr, GROWTH: tl.constexpr
):  # fmt: skip
    """Load the nine taps' (K, GROWTH) weights of channels c of one layer's (9, C, GROWTH)."""
    k = tl.arange(0, GROWTH)
    taps = ()
    for tap in tl.static_range(9):
        at = (tap * C + c)[:, None] * GROWTH + k[None, :]
        taps = taps + (tl.load(weights + at, mask=(c < READ)[:, None], other=0.0),)
    return taps


@triton.jit
def _dense_layer_kernel(
    map, weights, affine, statistics, partials_in, partials_out, tile_means,
    READ: tl.constexpr, C: tl.constexpr, GROWTH: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, N: tl.constexpr,
    NEW: tl.constexpr, WIDTH: tl.constexpr, NUM_PARTS: tl.constexpr, EACH: tl.constexpr,
    EPS: tl.constexpr, PROGRAMS: tl.constexpr, TILES: tl.constexpr, P: tl.constexpr,
    NUM_CHUNKS: tl.constexpr, CHUNKS: tl.constexpr, FIRST: tl.constexpr,
    MEANS: tl.constexpr, MEANS_STRIDE: tl.constexpr,
):  # fmt: skip
    """map[READ ... READ + GROWTH] = conv3x3(relu(norm(map[0 ... READ]))). Grid: (PROGRAMS,)."""
    program = tl.program_id(0)
    scales = ()
    shifts = ()
    borders = ()
    taps = ()
    for i in tl.static_range(NUM_CHUNKS):
        c = FIRST[i] + tl.arange(0, CHUNKS[i])
        scale, shift = _affine(
            c, affine, statistics, partials_in, FIRST[i] + CHUNKS[i] > NEW,
            C, NEW, WIDTH, NUM_PARTS, EACH, EPS,
        )  # fmt: skip
        scales = scales + (scale,)
        shifts = shifts + (shift,)
        borders = borders + (_border(scale, map.dtype.element_ty),)
        taps = taps + (_nine_weights(weights, c, READ, C, GROWTH),)
    k = tl.arange(0, GROWTH)
    spread = tl.zeros([P, GROWTH], tl.float32)
    mean = tl.zeros([GROWTH], tl.float32)
    between = tl.zeros([GROWTH], tl.float32)
    for t in range(TILES):
        tile = program * TILES + t
        p = tile * P + tl.arange(0, P)
        row = p // W % H
        col = p % W
        acc = tl.zeros([P, GROWTH], tl.float32)
        for i in tl.static_range(NUM_CHUNKS):
            c = FIRST[i] + tl.arange(0, CHUNKS[i])
            for tap in tl.static_range(9):
                dh = tap // 3 - 1
                dw = tap % 3 - 1
                inside = (row + dh >= 0) & (row + dh < H) & (col + dw >= 0) & (col + dw < W)
                mask = inside[:, None] & (c < READ)[None, :]
                at = _at(p + (dh * W + dw), c, N)
                x = tl.load(map + at, mask=mask, other=borders[i][None, :])
                acc = _dot(_activate(x, scales[i], shifts[i]), taps[i][tap], acc)
        y = acc.to(map.dtype.element_ty)
        tl.store(map + _at(p, READ + k, N), y)
        spread, mean, between, m = _accumulate(y.to(tl.float32), t, spread, mean, between, P)
        if MEANS:
            tl.store(tile_means + tile * MEANS_STRIDE + k, m)
    tl.store(partials_out + program * GROWTH + k, mean)
    tl.store(partials_out + (PROGRAMS + program) * GROWTH + k, tl.sum(spread, 0) + between)


@triton.jit
def _column_weights(
    weights, kw: tl.constexpr, c, READ: tl.constexpr, C: tl.constexpr, GROWTH: tl.constexpr
):
    """(K, 4 * GROWTH) weights of kernel column kw: kernel row * GROWTH + output, the last zero."""
    n = tl.arange(0, 4 * GROWTH)
    at = ((n // GROWTH * 3 + kw) * (C * GROWTH) + n % GROWTH)[None, :] + (c * GROWTH)[:, None]
    mask = (c < READ)[:, None] & (n < 3 * GROWTH)[None, :]
    return tl.load(weights + at, mask=mask, other=0.0)


@triton.jit
def _kernel_rows(acc, P: tl.constexpr, GROWTH: tl.constexpr):
    """(P, 4 * GROWTH) -> (P, GROWTH) of kernel rows 0, 1 and 2.

    In the products' layout a thread holds them all, so no data moves.
    """
    split = tl.permute(tl.reshape(acc, [P, 2, 2, GROWTH]), [0, 3, 1, 2])
    even, odd = tl.split(split)
    zero, two = tl.split(even)
    one, _ = tl.split(odd)
    return zero, one, two


@triton.jit
def _dense_layer_walk_kernel(
    map, weights, affine, statistics, partials_in, partials_out, tile_means,
    READ: tl.constexpr, C: tl.constexpr, GROWTH: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, N: tl.constexpr,
    NEW: tl.constexpr, WIDTH: tl.constexpr, NUM_PARTS: tl.constexpr, EACH: tl.constexpr,
    EPS: tl.constexpr, PROGRAMS: tl.constexpr, IMAGES: tl.constexpr, ROWS: tl.constexpr,
    NUM_CHUNKS: tl.constexpr, CHUNKS: tl.constexpr, FIRST: tl.constexpr,
    MEANS_STRIDE: tl.constexpr,
):  # fmt: skip
    """As `_dense_layer_kernel`, walking down ROWS rows of IMAGES images. Grid: (PROGRAMS,).

    Input row r adds to output rows r - 1, r and r + 1 at once, so that every row is read and
    normalised 3 times, once a kernel column, and not 9.
    """
    program = tl.program_id(0)
    STRIPS: tl.constexpr = H // ROWS
    P: tl.constexpr = IMAGES * W
    scales = ()
    shifts = ()
    borders = ()
    columns = ()
    for i in tl.static_range(NUM_CHUNKS):
        c = FIRST[i] + tl.arange(0, CHUNKS[i])
        scale, shift = _affine(
            c, affine, statistics, partials_in, FIRST[i] + CHUNKS[i] > NEW,
            C, NEW, WIDTH, NUM_PARTS, EACH, EPS,
        )  # fmt: skip
        scales = scales + (scale,)
        shifts = shifts + (shift,)
        borders = borders + (_border(scale, map.dtype.element_ty),)
        three = ()
        for kw in tl.static_range(3):
            three = three + (_column_weights(weights, kw, c, READ, C, GROWTH),)
        columns = columns + (three,)
    k = tl.arange(0, GROWTH)
    i_p = tl.arange(0, P)
    first_image = program // STRIPS * IMAGES
    first_row = program % STRIPS * ROWS
    col = i_p % W
    top = (first_image + i_p // W) * (H * W) + col  # plus row * W

    spread = tl.zeros([P, GROWTH], tl.float32)
    mean = tl.zeros([GROWTH], tl.float32)
    between = tl.zeros([GROWTH], tl.float32)
    sums = tl.zeros([IMAGES, GROWTH], tl.float32)
    above = tl.zeros([P, GROWTH], tl.float32)
    here = tl.zeros([P, GROWTH], tl.float32)
    for s in range(ROWS + 2):
        r = first_row - 1 + s
        # One wide product, split: given several, Triton computes the activation once for each.
        acc = tl.zeros([P, 4 * GROWTH], tl.float32)
        for kw in tl.static_range(3):
            inside = (r >= 0) & (r < H) & (col + (kw - 1) >= 0) & (col + (kw - 1) < W)
            p = top + r * W + (kw - 1)
            for i in tl.static_range(NUM_CHUNKS):
                c = FIRST[i] + tl.arange(0, CHUNKS[i])
                mask = inside[:, None] & (c < READ)[None, :]
                x = tl.load(map + _at(p, c, N), mask=mask, other=borders[i][None, :])
                acc = _dot(_activate(x, scales[i], shifts[i]), columns[i][kw], acc)
        below, add, done = _kernel_rows(acc, P, GROWTH)
        above += done
        here += add
        if s >= 2:
            y = above.to(map.dtype.element_ty)
            tl.store(map + _at(top + (r - 1) * W, READ + k, N), y)
            y = y.to(tl.float32)
            sums += tl.sum(tl.reshape(y, [IMAGES, W, GROWTH]), 1)
            spread, mean, between, _ = _accumulate(y, s - 2, spread, mean, between, P)
        above = here
        here = below
    tl.store(partials_out + program * GROWTH + k, mean)
    tl.store(partials_out + (PROGRAMS + program) * GROWTH + k, tl.sum(spread, 0) + between)
    tile = (first_image + tl.arange(0, IMAGES)) * STRIPS + program % STRIPS
    tl.store(tile_means + tile[:, None] * MEANS_STRIDE + k[None, :], sums / (ROWS * W))


@triton.jit
def _dense_transition_kernel(
    map, weights, affine, statistics, partials_in, out, partials_out, tile_means,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, N: tl.constexpr,
    OUT: tl.constexpr, BLOCK_OUT: tl.constexpr,
    NEW: tl.constexpr, WIDTH: tl.constexpr, NUM_PARTS: tl.constexpr, EACH: tl.constexpr,
    EPS: tl.constexpr, PROGRAMS: tl.constexpr, TILES: tl.constexpr, P: tl.constexpr,
    NUM_CHUNKS: tl.constexpr, CHUNKS: tl.constexpr, FIRST: tl.constexpr, MEANS: tl.constexpr,
):  # fmt: skip
    """out[0 ... OUT] = conv1x1(avgpool2(relu(norm(map)))). Grid: (PROGRAMS,).

    Averages first, as the two commute: a quarter of the products. Rounded to the maps' dtype the
    averages would move gradients further than autocast does, whose roundings the pooling averages,
    so what rounding takes away is multiplied as well (docs/measured.md). weights: (C, OUT). H, W
    and N are the map's; P positions are out's.
    """
    program = tl.program_id(0)
    n = tl.arange(0, BLOCK_OUT)
    scales = ()
    shifts = ()
    products = ()
    for i in tl.static_range(NUM_CHUNKS):
        c = FIRST[i] + tl.arange(0, CHUNKS[i])
        scale, shift = _affine(
            c, affine, statistics, partials_in, FIRST[i] + CHUNKS[i] > NEW,
            C, NEW, WIDTH, NUM_PARTS, EACH, EPS,
        )  # fmt: skip
        scales = scales + (scale,)
        shifts = shifts + (shift,)
        mask = (c < C)[:, None] & (n < OUT)[None, :]
        w = tl.load(weights + c[:, None] * OUT + n[None, :], mask=mask, other=0.0)
        products = products + (w,)
    spread = tl.zeros([P, BLOCK_OUT], tl.float32)
    mean = tl.zeros([BLOCK_OUT], tl.float32)
    between = tl.zeros([BLOCK_OUT], tl.float32)
    for t in range(TILES):
        tile = program * TILES + t
        q = tile * P + tl.arange(0, P)
        p = q // (W // 2) * (2 * W) + q % (W // 2) * 2  # H is even: rows of all images run on
        acc = tl.zeros([P, BLOCK_OUT], tl.float32)
        for i in tl.static_range(NUM_CHUNKS):
            c = FIRST[i] + tl.arange(0, CHUNKS[i])
            a = _average_activation(map, p, c, scales[i], shifts[i], C, W, N)
            rounded = a.to(map.dtype.element_ty)
            acc = _dot(rounded, products[i], acc)
            acc = _dot((a - rounded.to(tl.float32)).to(rounded.dtype), products[i], acc)
        y = acc.to(out.dtype.element_ty)
        tl.store(out + _at(q, n, N // 4), y, mask=(n < OUT)[None, :])
        spread, mean, between, m = _accumulate(y.to(tl.float32), t, spread, mean, between, P)
        if MEANS:
            tl.store(tile_means + tile * OUT + n, m, mask=n < OUT)
    tl.store(partials_out + program * OUT + n, mean, mask=n < OUT)
    tl.store(partials_out + (PROGRAMS + program) * OUT + n, tl.sum(spread, 0) + between,
             mask=n < OUT)  # fmt: skip


@triton.jit
def _tap_from_means(
    input_means, layer_means, pooled, image,
    INPUT_MEANS: tl.constexpr, LAYER_MEANS: tl.constexpr, IN: tl.constexpr, PADDED_IN: tl.constexpr,
    NEW: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_NEW: tl.constexpr,
):  # fmt: skip
    """pooled[image] of a block from what its kernels kept: means of equally many positions."""
    tile = image * INPUT_MEANS + tl.arange(0, INPUT_MEANS)
    c = tl.arange(0, BLOCK_IN)
    at = tile[:, None] * PADDED_IN + c[None, :]
    m = tl.load(input_means + at, mask=(c < IN)[None, :], other=0.0)
    row = pooled + image * (IN + NEW)
    tl.store(row + c, tl.sum(m, 0) / INPUT_MEANS, mask=c < IN)
    tile = image * LAYER_MEANS + tl.arange(0, LAYER_MEANS)
    c = tl.arange(0, BLOCK_NEW)
    m = tl.load(layer_means + tile[:, None] * NEW + c[None, :], mask=(c < NEW)[None, :], other=0.0)
    tl.store(row + IN + c, tl.sum(m, 0) / LAYER_MEANS, mask=c < NEW)


@triton.jit
def _dense_taps_kernel(
    map, affine, statistics, partials, pooled, input_means, layer_means,
    C: tl.constexpr, IN: tl.constexpr, PADDED_IN: tl.constexpr, PLACES: tl.constexpr,
    N: tl.constexpr, NEW: tl.constexpr, WIDTH: tl.constexpr, NUM_PARTS: tl.constexpr,
    EACH: tl.constexpr, EPS: tl.constexpr, GROUPS: tl.constexpr,
    TAP_INPUT_MEANS: tl.constexpr, TAP_LAYER_MEANS: tl.constexpr, TAP_IN: tl.constexpr,
    TAP_PADDED_IN: tl.constexpr, TAP_NEW: tl.constexpr,
    TAP_BLOCK_IN: tl.constexpr, TAP_BLOCK_NEW: tl.constexpr,
):  # fmt: skip
    """Every pooled tap. Grid: (B, GROUPS + 2), programs (b, GROUPS + i) for the taps of blocks i.

    The last tap: pooled[2][b, c] = mean of relu(norm(map)) over the PLACES positions of image b, in
    GROUPS groups of WIDTH channels. TAP_ values are those of blocks 1 and 2.
    """
    image = tl.program_id(0)
    group = tl.program_id(1)
    if group < GROUPS:
        c = group * WIDTH + tl.arange(0, WIDTH)
        scale, shift = _affine(
            c, affine, statistics, partials, group * WIDTH + WIDTH > NEW,
            C, NEW, WIDTH, NUM_PARTS, EACH, EPS,
        )  # fmt: skip
        p = image * PLACES + tl.arange(0, PLACES)
        x = tl.load(map + _at(p, c, N), mask=(c < C)[None, :], other=0.0)
        mean = tl.sum(tl.maximum(x.to(tl.float32) * scale[None, :] + shift[None, :], 0.0), 0)
        exists = (c < IN) | ((c >= PADDED_IN) & (c < C))
        column = tl.where(c < IN, c, c - (PADDED_IN - IN))
        row = pooled[2] + image * (C - PADDED_IN + IN)
        tl.store(row + column, mean / PLACES, mask=exists)
    for i in tl.static_range(2):
        if group == GROUPS + i:
            _tap_from_means(
                input_means[i], layer_means[i], pooled[i], image,
                TAP_INPUT_MEANS[i], TAP_LAYER_MEANS[i], TAP_IN[i], TAP_PADDED_IN[i], TAP_NEW[i],
                TAP_BLOCK_IN[i], TAP_BLOCK_NEW[i],
            )  # fmt: skip
