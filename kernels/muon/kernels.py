"""The kernel of muon_update_: one program takes one weight through a whole step.

Shape letters: R rows and C columns of a weight seen as a matrix with R <= C.
"""

import triton
import triton.language as tl


@triton.jit
def _product(a, b):
    # In fp32: TF32 would leave three digits, and the iteration amplifies what is lost.
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _muon_matrix(
    weight, grad, average, lr, rows, columns, stride_r, stride_c, scale, momentum, weight_decay,
    CUBIC: tl.constexpr, QUINTIC: tl.constexpr, LINEAR: tl.constexpr,
    ITERATIONS: tl.constexpr, EPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Update one weight and its gradient's average, both (rows, columns), in place."""
    r = tl.arange(0, BLOCK_R)
    # Average the gradients, and gram[i, j] = sum_c u[i, c] u[j, c] of Nesterov's look ahead u.
    gram = tl.zeros([BLOCK_R, BLOCK_R], tl.float32)
    for start in range(0, columns, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        cell = r[:, None] * stride_r + c[None, :] * stride_c
        mask = (r < rows)[:, None] & (c < columns)[None, :]
        g = tl.load(grad + cell, mask=mask, other=0.0)
        v = tl.load(average + cell, mask=mask, other=0.0)
        v += (1.0 - momentum) * (g - v)
        tl.store(average + cell, v, mask=mask)
        u = g + momentum * (v - g)
        gram += _product(u, tl.trans(u))

    # The squared Frobenius norm is the trace of gram.
    identity = (r[:, None] == r[None, :]).to(tl.float32)
    square = tl.maximum(tl.sum(tl.sum(gram * identity, 1), 0), EPS * EPS)
    a = gram / square
    q = identity
    for _ in range(ITERATIONS):
        p = LINEAR * identity + CUBIC * a + QUINTIC * _product(a, a)
        q = _product(p, q)
        a = _product(_product(p, a), p)

    # The averages above may have been stored by other threads of this program.
    tl.debug_barrier()
    rate = tl.load(lr).to(tl.float32)
    q *= rate * scale / tl.sqrt(square)
    for start in range(0, columns, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        cell = r[:, None] * stride_r + c[None, :] * stride_c
        mask = (r < rows)[:, None] & (c < columns)[None, :]
        g = tl.load(grad + cell, mask=mask, other=0.0)
        v = tl.load(average + cell, mask=mask, other=0.0)
        u = g + momentum * (v - g)
        w = tl.load(weight + cell, mask=mask, other=0.0)
        w = w * (1.0 - rate * weight_decay) - _product(q, u)
        tl.store(weight + cell, w, mask=mask)


@triton.jit
def _muon_update_kernel(
    weights, grads, averages, lr, momentum, weight_decay,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE_R: tl.constexpr, STRIDE_C: tl.constexpr,
    SCALE: tl.constexpr, CUBIC: tl.constexpr, QUINTIC: tl.constexpr, LINEAR: tl.constexpr,
    ITERATIONS: tl.constexpr, EPS: tl.constexpr,
    NUM_SIZES: tl.constexpr, FIRST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Run `_muon_matrix` on every weight. Weights FIRST[s] ... FIRST[s + 1] - 1 have block size s.

    Grid: (weights,). One body serves all weights of a block size: what it works on is selected.
    """
    i = tl.program_id(0)
    for s in tl.static_range(NUM_SIZES):
        if (i >= FIRST[s]) & (i < FIRST[s + 1]):
            weight, grad, average = weights[FIRST[s]], grads[FIRST[s]], averages[FIRST[s]]
            rows, columns, scale = ROWS[FIRST[s]], COLUMNS[FIRST[s]], SCALE[FIRST[s]]
            stride_r, stride_c = STRIDE_R[FIRST[s]], STRIDE_C[FIRST[s]]
            for j in tl.static_range(FIRST[s] + 1, FIRST[s + 1]):
                weight = tl.where(i == j, weights[j], weight)
                grad = tl.where(i == j, grads[j], grad)
                average = tl.where(i == j, averages[j], average)
                rows = tl.where(i == j, ROWS[j], rows)
                columns = tl.where(i == j, COLUMNS[j], columns)
                scale = tl.where(i == j, SCALE[j], scale)
                stride_r = tl.where(i == j, STRIDE_R[j], stride_r)
                stride_c = tl.where(i == j, STRIDE_C[j], stride_c)
            _muon_matrix(
                weight, grad, average, lr, rows, columns, stride_r, stride_c, scale,
                momentum, weight_decay, CUBIC, QUINTIC, LINEAR, ITERATIONS, EPS,
                BLOCK_R[s], BLOCK_C[s],
            )  # fmt: skip
