"""The kernel of muon_update_: one program takes one weight through a whole step.

Shape letters: R rows and C columns of a weight seen as a matrix with R <= C.
"""

import triton
import triton.language as tl

from .halves import _muon_matrix_in_halves
from .matrices import _average, _identity, _square_norm


@triton.jit
def _product(a, b):
    # In fp32: TF32 would leave three digits, and the iteration amplifies what is lost.
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _gram_of_ahead(
    grad, average, rows, columns, stride_r, stride_c, momentum,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Average the gradients; return gram[i, j] = sum_c u[i, c] u[j, c] of Nesterov's look ahead u.

    The averages are in memory, seen by all threads of the program.
    """
    r = tl.arange(0, BLOCK_R)
    gram = tl.zeros([BLOCK_R, BLOCK_R], tl.float32)
    for start in range(0, columns, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        cell = r[:, None] * stride_r + c[None, :] * stride_c
        mask = (r < rows)[:, None] & (c < columns)[None, :]
        u = _average(grad, average, cell, mask, momentum)
        gram += _product(u, tl.trans(u))
    tl.debug_barrier()
    return gram


@triton.jit
def _muon_matrix(
    weight, grad, average, lr, rows, columns, stride_r, stride_c, scale, momentum, weight_decay,
    CUBIC: tl.constexpr, QUINTIC: tl.constexpr, LINEAR: tl.constexpr,
    ITERATIONS: tl.constexpr, EPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Update one weight and its gradient's average, both (rows, columns), in place."""
    gram = _gram_of_ahead(
        grad, average, rows, columns, stride_r, stride_c, momentum, BLOCK_R, BLOCK_C
    )
    square = _square_norm(gram, BLOCK_R, EPS)
    a = gram / square
    q = _identity(BLOCK_R)
    for _ in range(ITERATIONS):
        p = LINEAR * _identity(BLOCK_R) + CUBIC * a + QUINTIC * _product(a, a)
        q = _product(p, q)
        a = _product(_product(p, a), p)

    rate = tl.load(lr).to(tl.float32)
    q *= rate * scale / tl.sqrt(square)
    r = tl.arange(0, BLOCK_R)
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
def _product_in_memory(a, b, N: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return a b of two (N, N) matrices in memory."""
    n = tl.arange(0, N)
    out = tl.zeros([N, N], tl.float32)
    for start in range(0, N, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        left = tl.load(a + n[:, None] * N + k[None, :])
        right = tl.load(b + k[:, None] * N + n[None, :])
        out += _product(left, right)
    return out


@triton.jit
def _put(to, matrix, N: tl.constexpr):
    """Store a (N, N) matrix where the program's threads may have been reading, and will read."""
    n = tl.arange(0, N)
    tl.debug_barrier()
    tl.store(to + n[:, None] * N + n[None, :], matrix)
    tl.debug_barrier()


@triton.jit
def _muon_matrix_in_memory(
    weight, grad, average, lr, rows, columns, stride_r, stride_c, scale, momentum, weight_decay,
    scratch, CUBIC: tl.constexpr, QUINTIC: tl.constexpr, LINEAR: tl.constexpr,
    ITERATIONS: tl.constexpr, EPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Do as `_muon_matrix`, with the factors of products in `scratch`, which the L1 cache holds.

    scratch: 3 matrices (BLOCK_R, BLOCK_R). Factors of this size would not fit the registers.
    """
    gram = _gram_of_ahead(
        grad, average, rows, columns, stride_r, stride_c, momentum, BLOCK_R, BLOCK_C
    )
    square = _square_norm(gram, BLOCK_R, EPS)
    a = gram / square
    at_a, at_p = scratch, scratch + BLOCK_R * BLOCK_R
    at_q = at_p + BLOCK_R * BLOCK_R
    _put(at_q, _identity(BLOCK_R), BLOCK_R)
    for _ in range(ITERATIONS):
        _put(at_a, a, BLOCK_R)
        a = CUBIC * a + QUINTIC * _product_in_memory(at_a, at_a, BLOCK_R, BLOCK_C)
        _put(at_p, LINEAR * _identity(BLOCK_R) + a, BLOCK_R)
        _put(at_q, _product_in_memory(at_p, at_q, BLOCK_R, BLOCK_C), BLOCK_R)
        _put(at_a, _product_in_memory(at_p, at_a, BLOCK_R, BLOCK_C), BLOCK_R)
        a = _product_in_memory(at_a, at_p, BLOCK_R, BLOCK_C)

    rate = tl.load(lr).to(tl.float32)
    factor = rate * scale / tl.sqrt(square)
    r = tl.arange(0, BLOCK_R)
    for start in range(0, columns, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        step = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        for first in range(0, BLOCK_R, BLOCK_C):
            k = first + tl.arange(0, BLOCK_C)
            cell = k[:, None] * stride_r + c[None, :] * stride_c
            mask = (k < rows)[:, None] & (c < columns)[None, :]
            g = tl.load(grad + cell, mask=mask, other=0.0)
            v = tl.load(average + cell, mask=mask, other=0.0)
            u = g + momentum * (v - g)
            step += _product(tl.load(at_q + r[:, None] * BLOCK_R + k[None, :]), u)
        cell = r[:, None] * stride_r + c[None, :] * stride_c
        mask = (r < rows)[:, None] & (c < columns)[None, :]
        w = tl.load(weight + cell, mask=mask, other=0.0)
        w = w * (1.0 - rate * weight_decay) - factor * step
        tl.store(weight + cell, w, mask=mask)


@triton.jit
def _muon_update_kernel(
    weights, grads, averages, lr, momentum, weight_decay, scratch,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE_R: tl.constexpr, STRIDE_C: tl.constexpr,
    SCALE: tl.constexpr, CUBIC: tl.constexpr, QUINTIC: tl.constexpr, LINEAR: tl.constexpr,
    ITERATIONS: tl.constexpr, EPS: tl.constexpr,
    NUM_SIZES: tl.constexpr, FIRST: tl.constexpr, IN_REGISTERS: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
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
            # Named: Triton 3.6 takes an element of a constant tuple for a value of the run.
            SECOND: tl.constexpr = FIRST[s] + 1
            END: tl.constexpr = FIRST[s + 1]
            for j in tl.static_range(SECOND, END):
                weight = tl.where(i == j, weights[j], weight)
                grad = tl.where(i == j, grads[j], grad)
                average = tl.where(i == j, averages[j], average)
                rows = tl.where(i == j, ROWS[j], rows)
                columns = tl.where(i == j, COLUMNS[j], columns)
                scale = tl.where(i == j, SCALE[j], scale)
                stride_r = tl.where(i == j, STRIDE_R[j], stride_r)
                stride_c = tl.where(i == j, STRIDE_C[j], stride_c)
            if TENSOR_CORES:
                _muon_matrix_in_halves(
                    weight, grad, average, lr, rows, columns, stride_r, stride_c, scale,
                    momentum, weight_decay, CUBIC, QUINTIC, LINEAR, ITERATIONS, EPS,
                    BLOCK_R[s], BLOCK_C[s],
                )  # fmt: skip
            elif IN_REGISTERS[s]:
                _muon_matrix(
                    weight, grad, average, lr, rows, columns, stride_r, stride_c, scale,
                    momentum, weight_decay, CUBIC, QUINTIC, LINEAR, ITERATIONS, EPS,
                    BLOCK_R[s], BLOCK_C[s],
                )  # fmt: skip
            else:
                _muon_matrix_in_memory(
                    weight, grad, average, lr, rows, columns, stride_r, stride_c, scale,
                    momentum, weight_decay, scratch + (i - FIRST[s]) * 3 * BLOCK_R[s] * BLOCK_R[s],
                    CUBIC, QUINTIC, LINEAR, ITERATIONS, EPS, BLOCK_R[s], BLOCK_C[s],
                )  # fmt: skip
