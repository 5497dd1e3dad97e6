"""The backward chain of dense_backbone: one kernel pulls a group's gradient from all its readers.

A group of channels h was made once and read by readers u: later layers of the block, and its end,
which is the transition, or the last norm before the pool. With xhat = (h - mean) * rstd:

    z_u  = gamma_u xhat + beta_u,   dz_u = (z_u > 0) * (transposed convolution of dout_u by W_u)
    d beta_u = sum dz_u,            d gamma_u = sum dz_u xhat
    raw  = d tap + rstd * sum_u gamma_u dz_u
    dout = raw - rstd S1 / N - (h - mean) rstd^2 S2 / N
    S1 = sum_u gamma_u d beta_u,    S2 = sum_u gamma_u d gamma_u

The statistics are shared, so one correction by S1 and S2 stands for every reader's. Only when the
kernel ends are S1 and S2 known: whoever reads `raw` first, the next kernel, corrects what it reads
and writes dout for the kernels after it. The sum over readers stays in fp32 registers and is
rounded once; a schedule that pushes layer by layer rounds it at every layer, and its code spills.

Transition, last norm and taps need no kernel of their own: a transition is a reader by a 1x1
convolution at a quarter of the positions, the last norm one whose dz is constant in an image.

Words and letters as in `statistics.py`; K the growth rate; im2col columns are tap * K + channel.
"""

# A tuple grows in a static loop, which Triton unrolls and mypy does not.
# mypy: disable-error-code="assignment"

import triton
import triton.language as tl

from .statistics import _at, _dot


@triton.jit
def _correction(
    c, statistics, partials, WIDTH: tl.constexpr, STATISTICS: tl.constexpr,
    NUM_PARTS: tl.constexpr, N: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """(m, a, b) of channels c: dout = raw - a - (h - m) b. partials: S1, S2 (2, NUM_PARTS, WIDTH).

    statistics: starts at c = 0's mean, its variance STATISTICS further on.
    """
    ROWS: tl.constexpr = min(triton.next_power_of_2(NUM_PARTS), 256)
    i = tl.arange(0, ROWS)
    inside = c < WIDTH
    sums = tl.zeros([ROWS, c.shape[0]], tl.float32)
    products = tl.zeros([ROWS, c.shape[0]], tl.float32)
    for r in tl.static_range(0, NUM_PARTS, ROWS):
        cell = (r + i)[:, None] * WIDTH + c[None, :]
        mask = (r + i < NUM_PARTS)[:, None] & inside[None, :]
        sums += tl.load(partials + cell, mask=mask, other=0.0)
        products += tl.load(partials + NUM_PARTS * WIDTH + cell, mask=mask, other=0.0)
    mean = tl.load(statistics + c, mask=inside, other=0.0)
    variance = tl.load(statistics + STATISTICS + c, mask=inside, other=0.0)
    rstd = 1.0 / tl.sqrt(variance + EPS)
    return mean, rstd * tl.sum(sums, 0) / N, rstd * rstd * tl.sum(products, 0) / N


@triton.jit
def _corrected(raw, map, p, c, mask, m, a, b, N: tl.constexpr):
    """Dout (P, C) at positions p of channels c, from the raw gradient and the map."""
    at = _at(p, c, N)
    g = tl.load(raw + at, mask=mask, other=0.0).to(tl.float32)
    h = tl.load(map + at, mask=mask, other=0.0).to(tl.float32)
    return (g - a[None, :] - (h - m[None, :]) * b[None, :]).to(raw.dtype.element_ty)


@triton.jit
def _gather(
    source, p, row, col, kk,
    H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """im2col (P, kk) of the transposed convolution: at p less the tap's offset, zero outside."""
    tap = kk // K
    dh = tap // 3 - 1
    dw = tap % 3 - 1
    r = row[:, None] - dh[None, :]
    q = col[:, None] - dw[None, :]
    inside = (r >= 0) & (r < H) & (q >= 0) & (q < W) & (tap < 9)[None, :]
    # Written so that the compiler sees 8 neighbours: of kk % K it would load them one by one.
    plane = kk // 8 % (K // 8) * (8 * N)
    at = (plane + kk % 8 - (dh * W + dw) * 8)[None, :] + (p * 8)[:, None]
    return tl.load(source + at, mask=inside, other=0.0)


@triton.jit
def _lanes(x, P: tl.constexpr, CW: tl.constexpr, WARPS: tl.constexpr):
    """Sum (P, CW) over positions as far as one thread holds them in the products' layout.

    (WARPS, 8, CW) remain and no thread asks another; they are summed once, at the end.
    """
    return tl.sum(tl.sum(tl.reshape(x, [P // (16 * WARPS), WARPS, 2, 8, CW]), 2), 0)


@triton.jit
def _gamma_beta(affine, c, mask, C: tl.constexpr):
    """Gamma and beta (1, CW) of one reader's channels c."""
    gamma = tl.load(affine + c, mask=mask, other=0.0)[None, :]
    return gamma, tl.load(affine + C + c, mask=mask, other=0.0)[None, :]


@triton.jit
def _store_sums(
    d_gamma, d_beta, columns, c, exists, affine, mask, NORM_CHANNELS, sum_1, sum_2,
):  # fmt: skip
    """Store a reader's d gamma and d beta of channels c, and add its share of S1 and S2."""
    d_gamma = tl.sum(tl.sum(d_gamma, 0), 0)
    d_beta = tl.sum(tl.sum(d_beta, 0), 0)
    tl.store(columns, d_gamma, mask=exists)
    tl.store(columns + NORM_CHANNELS, d_beta, mask=exists)
    gamma = tl.load(affine + c, mask=mask, other=0.0)
    return sum_1 + gamma * d_beta, sum_2 + gamma * d_gamma


@triton.jit
def _dense_group_bwd_kernel(
    map, statistics, weights, affine, raw_in, partials_in, dout, raw_out, partials_out, columns,
    scratch, d_tap, end_map, end_statistics, end_raw, end_partials, end_dout, end_weights,
    H: tl.constexpr, W: tl.constexpr, N: tl.constexpr, C: tl.constexpr, IN: tl.constexpr,
    PADDED_IN: tl.constexpr, K: tl.constexpr, LAYERS: tl.constexpr, MAKER: tl.constexpr,
    WIDTH: tl.constexpr, CW: tl.constexpr, EPS: tl.constexpr,
    PROGRAMS: tl.constexpr, TILES: tl.constexpr, P: tl.constexpr, WARPS: tl.constexpr,
    COLUMNS: tl.constexpr, D_TAP_STRIDE: tl.constexpr, IS_LAST: tl.constexpr,
    END_C: tl.constexpr, END_STATISTICS: tl.constexpr, END_PARTS: tl.constexpr,
    END_CORRECTS: tl.constexpr,
    END_CHUNKS: tl.constexpr, CHUNKS: tl.constexpr, FIRST: tl.constexpr, TAP_K: tl.constexpr,
):  # fmt: skip
    """raw_out: gradient of the WIDTH channels that layer MAKER made, -1 the block's input.

    Grid: (PROGRAMS, cdiv(WIDTH, CW)). Readers are layers MAKER + 1 ... LAYERS - 1 and the end: the
    transition, or with IS_LAST the norm before the pool. raw_in: the gradient of layer MAKER + 1's
    channels, which this kernel corrects, its tile and a halo of a row around it, in a scratch of
    each program's own; `dout` (LAYERS, K / 8, N, 8) takes the tile. END_CORRECTS: the same for the
    transition's output, END_C channels at N / 4 positions, which need no halo.
    partials_out: (2, PROGRAMS, WIDTH) of S1 and S2. columns: (PROGRAMS, COLUMNS) partials of the
    block's norms, gamma then beta, norm by norm. d_tap: (B, channels) gradient of the pooled tap.
    weights: (LAYERS, 9, C, K). affine: (LAYERS + 1, 2, C). TAP_K: max(16, K), what a product takes.
    """
    program = tl.program_id(0)
    slice = tl.program_id(1)
    PLACES: tl.constexpr = H * W
    MADE: tl.constexpr = PADDED_IN + MAKER * K if MAKER >= 0 else 0
    NEXT: tl.constexpr = PADDED_IN + (MAKER + 1) * K
    e = slice * CW + tl.arange(0, CW)  # channel within the WIDTH
    c = MADE + e
    mask = e < WIDTH
    exists = mask & ((c < IN) | (c >= PADDED_IN))
    parameter = tl.where(c < IN, c, c - (PADDED_IN - IN))
    k = tl.arange(0, K)
    k_most = tl.arange(0, 8 * K)
    k_rest = 8 * K + tl.arange(0, TAP_K)
    mean = tl.load(statistics + c, mask=mask, other=0.0)
    rstd = 1.0 / tl.sqrt(tl.load(statistics + C + c, mask=mask, other=0.0) + EPS)

    if MAKER + 1 < LAYERS:
        nm, na, nb = _correction(
            k, statistics + NEXT, partials_in, K, C, PROGRAMS, N, EPS
        )  # fmt: skip
        scratch += (slice * PROGRAMS + program) * (2 * (P + 2 * W) * K)
        halo = tl.arange(0, 2 * W)
    d_beta = ()
    d_gamma = ()
    for _ in tl.static_range(MAKER + 1, LAYERS + 1):  # the end is the last reader
        d_beta = d_beta + (tl.zeros([WARPS, 8, CW], tl.float32),)
        d_gamma = d_gamma + (tl.zeros([WARPS, 8, CW], tl.float32),)
    end_products = ()
    end_m = ()
    end_a = ()
    end_b = ()
    for i in tl.static_range(END_CHUNKS):
        n = FIRST[i] + tl.arange(0, CHUNKS[i])
        in_weights = (n < END_C)[:, None] & mask[None, :]
        w = tl.load(end_weights + n[:, None] + c[None, :] * END_C, mask=in_weights, other=0.0)
        end_products = end_products + (w,)
        if END_CORRECTS:
            m, a, b = _correction(
                n, end_statistics, end_partials, END_C, END_STATISTICS, END_PARTS, N // 4, EPS
            )
            end_m = end_m + (m,)
            end_a = end_a + (a,)
            end_b = end_b + (b,)

    for t in range(TILES):
        first = (program * TILES + t) * P
        p = first + tl.arange(0, P)
        row = p // W % H
        col = p % W
        h = tl.load(map + _at(p, c, N), mask=mask[None, :], other=0.0).to(tl.float32)
        xhat = (h - mean[None, :]) * rstd[None, :]
        total = tl.zeros([P, CW], tl.float32)
        new_beta = ()
        new_gamma = ()
        for u in tl.static_range(MAKER + 1, LAYERS):
            if u == MAKER + 1:
                mine = scratch + t % 2 * ((P + 2 * W) * K)  # two in turn: one barrier a tile
                inner = W + tl.arange(0, P)
                everywhere = (p >= 0)[:, None]
                v = _corrected(raw_in, map + NEXT // 8 * (8 * N), p, k, everywhere, nm, na, nb, N)
                tl.store(mine + _at(inner, k, P + 2 * W), v)
                if slice == 0:
                    tl.store(dout + u * (K * N) + _at(p, k, N), v)
                q = first + tl.where(halo < W, halo - W, P - W + halo)
                inside = ((q >= 0) & (q < N))[:, None]
                v = _corrected(raw_in, map + NEXT // 8 * (8 * N), q, k, inside, nm, na, nb, N)
                outer = tl.where(halo < W, halo, P + halo)
                tl.store(mine + _at(outer, k, P + 2 * W), v)
                tl.debug_barrier()  # other threads of this program read what this one stored
                d_most = _gather(mine, inner, row, col, k_most, H, W, K, P + 2 * W)
                d_rest = _gather(mine, inner, row, col, k_rest, H, W, K, P + 2 * W)
            else:
                d_most = _gather(dout + u * (K * N), p, row, col, k_most, H, W, K, N)
                d_rest = _gather(dout + u * (K * N), p, row, col, k_rest, H, W, K, N)
            # Loaded again for every tile, from L1: kept over the tiles, six layers' weights spill.
            w_u = weights + u * (9 * C * K)
            at = (k_most // K * (C * K) + k_most % K)[:, None] + (c * K)[None, :]
            w_most = tl.load(w_u + at, mask=mask[None, :], other=0.0)
            at = (k_rest // K * (C * K) + k_rest % K)[:, None] + (c * K)[None, :]
            in_rest = (k_rest < 9 * K)[:, None] & mask[None, :]
            w_rest = tl.load(w_u + at, mask=in_rest, other=0.0)
            d = _dot(d_rest, w_rest, _dot(d_most, w_most, tl.zeros([P, CW], tl.float32)))
            gamma, beta = _gamma_beta(affine + u * (2 * C), c, mask, C)
            dz = tl.where(xhat * gamma + beta > 0, d, 0.0)
            total += gamma * dz
            new_beta = new_beta + (d_beta[u - MAKER - 1] + _lanes(dz, P, CW, WARPS),)
            new_gamma = new_gamma + (d_gamma[u - MAKER - 1] + _lanes(dz * xhat, P, CW, WARPS),)

        tap_at = (p // PLACES * D_TAP_STRIDE)[:, None] + parameter[None, :]
        direct = tl.load(d_tap + tap_at, mask=exists[None, :], other=0.0) * (1.0 / PLACES)
        if IS_LAST:
            d = direct
        else:
            if END_CORRECTS:  # a quarter of the positions, each this program's alone
                q = (program * TILES + t) * (P // 4) + tl.arange(0, P // 4)
                for i in tl.static_range(END_CHUNKS):
                    n = FIRST[i] + tl.arange(0, CHUNKS[i])
                    in_end = (n < END_C)[None, :]
                    v = _corrected(
                        end_raw, end_map, q, n, in_end, end_m[i], end_a[i], end_b[i], N // 4
                    )
                    tl.store(end_dout + _at(q, n, N // 4), v, mask=in_end)
                tl.debug_barrier()
            q = p // (2 * W) * (W // 2) + col // 2  # H is even
            d = tl.zeros([P, CW], tl.float32)
            for i in tl.static_range(END_CHUNKS):
                n = FIRST[i] + tl.arange(0, CHUNKS[i])
                in_end = (n < END_C)[None, :]
                x = tl.load(end_dout + _at(q, n, N // 4), mask=in_end, other=0.0)
                d = _dot(x, end_products[i], d)
            d *= 0.25
        gamma, beta = _gamma_beta(affine + LAYERS * (2 * C), c, mask, C)
        dz = tl.where(xhat * gamma + beta > 0, d, 0.0)
        total += gamma * dz
        d_beta = new_beta + (d_beta[LAYERS - MAKER - 1] + _lanes(dz, P, CW, WARPS),)
        d_gamma = new_gamma + (d_gamma[LAYERS - MAKER - 1] + _lanes(dz * xhat, P, CW, WARPS),)

        g = rstd[None, :] * total
        if not IS_LAST:
            g += direct
        tl.store(raw_out + _at(p, e, N), g.to(map.dtype.element_ty), mask=mask[None, :])

    sum_1 = tl.zeros([CW], tl.float32)
    sum_2 = tl.zeros([CW], tl.float32)
    columns += program * COLUMNS
    for u in tl.static_range(MAKER + 1, LAYERS + 1):
        # Norms 0 ... u - 1 have IN, IN + K, ... channels; a norm's gamma comes before its beta.
        sum_1, sum_2 = _store_sums(
            d_gamma[u - MAKER - 1], d_beta[u - MAKER - 1],
            columns + (2 * u * IN + K * u * (u - 1)) + parameter, c, exists,
            affine + u * (2 * C), mask, IN + K * u, sum_1, sum_2,
        )  # fmt: skip
    tl.store(partials_out + program * WIDTH + e, sum_1, mask=mask)
    tl.store(partials_out + (PROGRAMS + program) * WIDTH + e, sum_2, mask=mask)
