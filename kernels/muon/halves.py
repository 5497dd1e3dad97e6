"""A program of muon_update_ with its products on tensor cores: compute capability 9 and 10.

Letters as in `kernels.py`.

Products of matrices go to the tensor cores in fp16 and keep fp32's error: a value x is held as two
fp16 values, high = fp16(x) and low = fp16(x - high), which leave 2^-24 |x| of it, half a unit in
fp32's last place. Of a product's four parts the least, low low, is 2^-24 of the whole and left out.
Before, x is multiplied by a power of two, so that low is no subnormal number where it counts
(after Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores while surpassing
the FP32 theoretical peak performance", 2022, https://arxiv.org/abs/2203.03341).
"""

import triton
import triton.language as tl

from .matrices import _average, _identity, _square_norm

# Of a, p and q: an entry is at most 3.4445^5 = 485, and fp16 ends at 65,504. What two fp16 values
# leave of an entry is at most 2^-24 of it or 2^-31.
_SCALE = tl.constexpr(64.0)
# Of a look ahead divided so that it is below 2.
_SCALE_OF_AHEAD = tl.constexpr(16384.0)


@triton.jit
def _halves(x, SCALE: tl.constexpr):
    """(high, low) of fp32 values times SCALE."""
    x *= SCALE
    high = x.to(tl.float16)
    low = (x - high.to(tl.float32)).to(tl.float16)
    return high, low


@triton.jit
def _product(a_high, a_low, b_high, b_low):
    """Return a b in fp32, times both their scales."""
    small = tl.dot(a_low, b_high, tl.dot(a_high, b_low))
    return tl.dot(a_high, b_high, small)


@triton.jit
def _scaled(u):
    """Return u / s and s, a power of two so that |u / s| < 2: fp16 has no room for any u."""
    largest = tl.maximum(tl.max(tl.abs(u)), 1e-30)
    s = (largest.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    small = u * (1.0 / s)
    return small, s


@triton.jit
def _gram_in_halves(
    grad, average, rows, columns, stride_r, stride_c, momentum,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Average the gradients; return gram[i, j] = sum_c u[i, c] u[j, c] of the look ahead u.

    The averages are in memory, seen by all threads of the program.
    """
    r = tl.arange(0, BLOCK_R)
    gram = tl.zeros([BLOCK_R, BLOCK_R], tl.float32)
    for start in range(0, columns, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        cell = r[:, None] * stride_r + c[None, :] * stride_c
        mask = (r < rows)[:, None] & (c < columns)[None, :]
        u, s = _scaled(_average(grad, average, cell, mask, momentum))
        high, low = _halves(u, _SCALE_OF_AHEAD)
        s /= _SCALE_OF_AHEAD
        gram += s * s * _product(high, low, tl.trans(high), tl.trans(low))
    tl.debug_barrier()
    return gram


@triton.jit
def _muon_matrix_in_halves(
    weight, grad, average, lr, rows, columns, stride_r, stride_c, scale, momentum, weight_decay,
    CUBIC: tl.constexpr, QUINTIC: tl.constexpr, LINEAR: tl.constexpr,
    ITERATIONS: tl.constexpr, EPS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Update one weight and its gradient's average, both (rows, columns), in place.

    a, p and q are polynomials of one matrix: they commute, and p a p may be made as p (p a).
    """
    gram = _gram_in_halves(
        grad, average, rows, columns, stride_r, stride_c, momentum, BLOCK_R, BLOCK_C
    )
    square = _square_norm(gram, BLOCK_R, EPS)
    ONE: tl.constexpr = 1.0 / (_SCALE * _SCALE)
    a = gram / square
    a_high, a_low = _halves(a, _SCALE)
    q_high, q_low = a_high, a_low
    for i in tl.static_range(ITERATIONS):
        p = LINEAR * _identity(BLOCK_R) + CUBIC * a
        p += (QUINTIC * ONE) * _product(a_high, a_low, a_high, a_low)
        p_high, p_low = _halves(p, _SCALE)
        if i == 0:
            q_high, q_low = p_high, p_low
        else:
            q = ONE * _product(p_high, p_low, q_high, q_low)
            q_high, q_low = _halves(q, _SCALE)
        if i < ITERATIONS - 1:
            b = ONE * _product(p_high, p_low, a_high, a_low)
            b_high, b_low = _halves(b, _SCALE)
            a = ONE * _product(p_high, p_low, b_high, b_low)
            a_high, a_low = _halves(a, _SCALE)

    rate = tl.load(lr).to(tl.float32)
    UNIT: tl.constexpr = 1.0 / (_SCALE * _SCALE_OF_AHEAD)
    shrink = 1.0 / tl.sqrt(square)
    r = tl.arange(0, BLOCK_R)
    for start in range(0, columns, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        cell = r[:, None] * stride_r + c[None, :] * stride_c
        mask = (r < rows)[:, None] & (c < columns)[None, :]
        g = tl.load(grad + cell, mask=mask, other=0.0)
        v = tl.load(average + cell, mask=mask, other=0.0)
        w = tl.load(weight + cell, mask=mask, other=0.0)
        u_high, u_low = _halves(shrink * (g + momentum * (v - g)), _SCALE_OF_AHEAD)
        step = _product(q_high, q_low, u_high, u_low)
        w = w * (1.0 - rate * weight_decay) - rate * scale * UNIT * step
        tl.store(weight + cell, w, mask=mask)
