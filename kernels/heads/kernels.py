"""The three kernels of deep_supervision_loss. `launch.py` configures and launches them.

Forward: `pool` reads every tap once, `classify` does the rest on (B, C) and (B, K) values; where
the caller has pooled, `classify` is all.
Backward: one launch makes every weight and bias gradient and the (B, C) gradient that the taps
share over their positions.

Shape letters: H heads, B images, K classes, C channels of one head's tap, P positions (height *
width) of its map, N sum of C over the heads, R rows (one per image and channel: r = b * C + c),
S splits of P.
"""

import triton
import triton.language as tl


@triton.jit
def _pool_tile(
    tap, sums, tile, num_images,
    C: tl.constexpr, P: tl.constexpr, FIRST: tl.constexpr, N: tl.constexpr,
    STRIDE_B: tl.constexpr, STRIDE_C: tl.constexpr, STRIDE_P: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, STEPS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Compute sums[split, b, FIRST + c] = sum over the split's positions p of tap[b, c, p]."""
    split = tile % SPLITS  # fastest, so that neighbouring programs read neighbouring memory
    r = tile // SPLITS * BLOCK_R + tl.arange(0, BLOCK_R)
    b = (r // C).to(tl.int64)
    c = (r % C).to(tl.int64)
    in_rows = r < num_images * C
    rows = tap + b * STRIDE_B + c * STRIDE_C
    total = tl.zeros([BLOCK_R, BLOCK_P], tl.float32)
    for step in tl.range(0, STEPS, loop_unroll_factor=2):
        p = (split * STEPS + step) * BLOCK_P + tl.arange(0, BLOCK_P).to(tl.int64)
        mask = in_rows[:, None] & (p < P)[None, :]
        x = tl.load(rows[:, None] + p[None, :] * STRIDE_P, mask=mask, other=0.0)
        total += x.to(tl.float32)  # tap[b, c, p] -> (BLOCK_R, BLOCK_P)
    tl.store(sums + (split * num_images + b) * N + FIRST + c, tl.sum(total, 1), mask=in_rows)


@triton.jit(do_not_specialize=["num_images"])
def _deep_supervision_loss_pool_kernel(
    taps, sums, arrivals, num_images,
    H: tl.constexpr, C: tl.constexpr, P: tl.constexpr, FIRST: tl.constexpr, N: tl.constexpr,
    STRIDE_B: tl.constexpr, STRIDE_C: tl.constexpr, STRIDE_P: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, STEPS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Run `_pool_tile` over every tile of every head, and clear the next launch's counter."""
    tile = tl.program_id(0)
    if tile == 0:
        tl.store(arrivals, 0)
    for h in tl.static_range(H):
        tiles = tl.cdiv(num_images * C[h], BLOCK_R[h]) * SPLITS[h]
        if (tile >= 0) & (tile < tiles):
            _pool_tile(
                taps[h], sums, tile, num_images, C[h], P[h], FIRST[h], N,
                STRIDE_B[h], STRIDE_C[h], STRIDE_P[h], BLOCK_R[h], BLOCK_P[h], STEPS[h], SPLITS[h],
            )  # fmt: skip
        tile -= tiles


@triton.jit(do_not_specialize=["num_images", "num_blocks"])
def _deep_supervision_loss_classify_kernel(
    sources, weights, biases, target, loss_weights, label_smoothing,
    loss, per_head, correct, d_logits, pooled, d_pooled,
    loss_sums, hits, arrivals, num_images, num_blocks,
    H: tl.constexpr, K: tl.constexpr, C: tl.constexpr, P: tl.constexpr,
    FIRST: tl.constexpr, N: tl.constexpr, SPLITS: tl.constexpr,
    COLUMN: tl.constexpr, STRIDE: tl.constexpr, BLOCK_S: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_REDUCE: tl.constexpr,
):  # fmt: skip
    """Take a block of images of one head from its source to d_logits and d_pooled.

    A head's source is what `pool` left, SPLITS partial sums of (B, N) that start at COLUMN = FIRST,
    or the caller's pooled features: one split, one position, rows STRIDE apart.
    Grid: (block of images, head). The program that arrives last adds up everyone's losses and hits.
    """
    block = tl.program_id(0)
    head = tl.program_id(1)
    # Selected, not branched over: one body serves every head, so code does not grow with H.
    source, weight, bias = sources[0], weights[0], biases[0]
    channels, positions, first, splits = C[0], P[0], FIRST[0], SPLITS[0]
    column, stride = COLUMN[0], STRIDE[0]
    for h in tl.static_range(1, H):
        source = tl.where(head == h, sources[h], source)
        weight = tl.where(head == h, weights[h], weight)
        bias = tl.where(head == h, biases[h], bias)
        channels = tl.where(head == h, C[h], channels)
        positions = tl.where(head == h, P[h], positions)
        first = tl.where(head == h, FIRST[h], first)
        splits = tl.where(head == h, SPLITS[h], splits)
        column = tl.where(head == h, COLUMN[h], column)
        stride = tl.where(head == h, STRIDE[h], stride)

    b = block * BLOCK_B + tl.arange(0, BLOCK_B)
    k = tl.arange(0, BLOCK_K)
    in_batch = b < num_images
    in_classes = k < K
    row = b.to(tl.int64)
    split = tl.arange(0, BLOCK_S).to(tl.int64)

    # logits[b, k] = sum_c pooled[b, c] weight[k, c] + bias[k]; the sum over the lanes of c waits
    # until the loop is done, so that a step is one multiply-add per register and no shuffle.
    products = tl.zeros([BLOCK_B, BLOCK_K, BLOCK_C], tl.float32)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        in_row = in_batch[:, None] & (c < channels)[None, :]
        read = row[:, None] * stride + column + c[None, :]
        parts = source + split[:, None, None] * num_images * N + read[None, :, :]
        in_parts = (split < splits)[:, None, None] & in_row[None, :, :]
        x = tl.sum(tl.load(parts, mask=in_parts, other=0.0).to(tl.float32), 0) / positions
        tl.store(pooled + row[:, None] * N + first + c[None, :], x, mask=in_row)
        in_weight = in_classes[:, None] & (c < channels)[None, :]
        w = tl.load(weight + k[:, None] * channels + c[None, :], mask=in_weight, other=0.0)
        products += x[:, None, :] * w.to(tl.float32)[None, :, :]
    logits = tl.sum(products, 2)
    logits += tl.load(bias + k, mask=in_classes, other=0.0).to(tl.float32)[None, :]

    # With z = logits - max: loss = log(sum exp z) - (1 - eps) z[y] - eps mean(z). Shifting first
    # keeps the digits of logits as large as 1e4.
    logits = tl.where(in_classes[None, :], logits, float("-inf"))
    z = logits - tl.max(logits, 1)[:, None]
    exp_z = tl.exp(z)
    sum_exp_z = tl.sum(exp_z, 1)
    y = tl.load(target + b, mask=in_batch, other=0)
    valid = (y >= 0) & (y < K)
    is_target = k[None, :] == y[:, None]
    z_target = tl.sum(tl.where(is_target, z, 0.0), 1)
    z_mean = tl.sum(tl.where(in_classes[None, :], z, 0.0), 1) / K
    row_loss = tl.log(sum_exp_z) - (1.0 - label_smoothing) * z_target - label_smoothing * z_mean
    row_loss = tl.where(valid, row_loss, float("nan"))
    partial = head * num_blocks + block
    tl.store(loss_sums + partial, tl.sum(tl.where(in_batch, row_loss, 0.0), 0))

    # The first of equal maxima wins, as in torch.argmax.
    best = tl.min(tl.where(z == 0.0, k[None, :], BLOCK_K), 1)
    tl.store(hits + partial, tl.sum((in_batch & valid & (best == y)).to(tl.int32), 0))

    # d loss / d logits = weight / B * (softmax - (1 - eps) [k == y] - eps / K)
    d = exp_z / sum_exp_z[:, None] - label_smoothing / K
    d = tl.where(is_target, d - (1.0 - label_smoothing), d)
    d *= tl.load(loss_weights + head).to(tl.float32) / num_images
    d = tl.where(valid[:, None], d, float("nan"))
    d = tl.where(in_classes[None, :], d, 0.0)
    d_rows = d_logits + (head.to(tl.int64) * num_images + row)[:, None] * K
    tl.store(d_rows + k[None, :], d, mask=in_batch[:, None] & in_classes[None, :])

    # d_pooled[b, c] = sum_k d[b, k] weight[k, c] / P
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        in_weight = in_classes[:, None] & (c < channels)[None, :]
        w = tl.load(weight + k[:, None] * channels + c[None, :], mask=in_weight, other=0.0)
        dx = tl.sum(d[:, :, None] * w.to(tl.float32)[None, :, :], 1) / positions
        in_row = in_batch[:, None] & (c < channels)[None, :]
        tl.store(d_pooled + row[:, None] * N + first + c[None, :], dx, mask=in_row)

    # An integer counter says who is last; what the last one adds up, and in which order, does not
    # depend on it. The barrier and acq_rel order every program's partial sums before the count, and
    # .cg reads them past a stale L1.
    tl.debug_barrier()
    arrived = tl.atomic_add(arrivals, 1, sem="acq_rel", scope="gpu")
    if arrived == H * num_blocks - 1:
        weighted = 0.0
        for h in tl.static_range(H):
            loss_lanes = tl.zeros([BLOCK_REDUCE], tl.float32)
            hit_lanes = tl.zeros([BLOCK_REDUCE], tl.int32)
            for start in range(0, num_blocks, BLOCK_REDUCE):
                i = start + tl.arange(0, BLOCK_REDUCE)
                cell = h * num_blocks + i
                mask = i < num_blocks
                loss_lanes += tl.load(loss_sums + cell, mask=mask, other=0.0, cache_modifier=".cg")
                hit_lanes += tl.load(hits + cell, mask=mask, other=0, cache_modifier=".cg")
            head_loss = tl.sum(loss_lanes, 0) / num_images
            tl.store(per_head + h, head_loss)
            tl.store(correct + h, tl.sum(hit_lanes, 0))
            weighted += tl.load(loss_weights + h).to(tl.float32) * head_loss
        tl.store(loss, weighted)


@triton.jit
def _linear_grad_tile(
    d_logits, pooled, grad_loss, d_weight, d_bias, tile, num_images,
    K: tl.constexpr, C: tl.constexpr, FIRST: tl.constexpr, N: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute d_weight[k, c] = g sum_b d_logits[b, k] pooled[b, c], and d_bias[k] alike."""
    c_tile = tile % tl.cdiv(C, BLOCK_C)
    c = c_tile * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tile // tl.cdiv(C, BLOCK_C) * BLOCK_K + tl.arange(0, BLOCK_K)
    # As in the forward, the sum over the lanes of b waits until the loop is done.
    products = tl.zeros([BLOCK_B, BLOCK_K, BLOCK_C], tl.float32)
    d_lanes = tl.zeros([BLOCK_B, BLOCK_K], tl.float32)
    for start in range(0, num_images, BLOCK_B):
        b = start + tl.arange(0, BLOCK_B).to(tl.int64)
        in_batch = (b < num_images)[:, None]
        d_cell, x_cell = b[:, None] * K + k[None, :], b[:, None] * N + FIRST + c[None, :]
        d = tl.load(d_logits + d_cell, mask=in_batch & (k < K)[None, :], other=0.0)
        x = tl.load(pooled + x_cell, mask=in_batch & (c < C)[None, :], other=0.0)
        products += d[:, :, None] * x[:, None, :]
        d_lanes += d
    g = tl.load(grad_loss)
    in_weight = (k < K)[:, None] & (c < C)[None, :]
    tl.store(d_weight + k[:, None] * C + c[None, :], tl.sum(products, 0) * g, mask=in_weight)
    if c_tile == 0:
        tl.store(d_bias + k, tl.sum(d_lanes, 0) * g, mask=k < K)


@triton.jit(do_not_specialize=["num_images"])
def _deep_supervision_loss_bwd_kernel(
    grad_loss, d_logits, pooled, d_pooled, d_weights, d_biases, d_taps, num_images,
    H: tl.constexpr, K: tl.constexpr, C: tl.constexpr, FIRST: tl.constexpr, N: tl.constexpr,
    NEEDS_LINEAR: tl.constexpr, NEEDS_TAPS: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Run `_linear_grad_tile` over every head that needs it, and make d_taps = g d_pooled."""
    tile = tl.program_id(0)
    for h in tl.static_range(H):
        if NEEDS_LINEAR[h]:
            tiles = tl.cdiv(K, BLOCK_K) * tl.cdiv(C[h], BLOCK_C)
            if (tile >= 0) & (tile < tiles):
                _linear_grad_tile(
                    d_logits + h * num_images.to(tl.int64) * K, pooled, grad_loss,
                    d_weights[h], d_biases[h], tile, num_images,
                    K, C[h], FIRST[h], N, BLOCK_B, BLOCK_K, BLOCK_C,
                )  # fmt: skip
            tile -= tiles
    if NEEDS_TAPS:
        if tile >= 0:
            i = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
            mask = i < num_images.to(tl.int64) * N
            dx = tl.load(d_pooled + i, mask=mask, other=0.0) * tl.load(grad_loss)
            tl.store(d_taps + i, dx, mask=mask)
