"""What both ways through a step of muon_update_ need of a small square matrix."""

import triton
import triton.language as tl


@triton.jit
def _identity(N: tl.constexpr):
    n = tl.arange(0, N)
    return (n[:, None] == n[None, :]).to(tl.float32)


@triton.jit
def _square_norm(gram, N: tl.constexpr, EPS: tl.constexpr):
    # The squared Frobenius norm is the trace.
    return tl.maximum(tl.sum(tl.sum(gram * _identity(N), 1), 0), EPS * EPS)
