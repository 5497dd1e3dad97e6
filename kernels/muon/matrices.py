"""What both ways through a step of muon_update_ share."""

import triton
import triton.language as tl


@triton.jit
def _average(grad, average, cell, mask, momentum):
    """Average the gradient at `cell`, in place; return Nesterov's look ahead."""
    g = tl.load(grad + cell, mask=mask, other=0.0)
    v = tl.load(average + cell, mask=mask, other=0.0)
    v += (1.0 - momentum) * (g - v)
    tl.store(average + cell, v, mask=mask)
    return g + momentum * (v - g)


@triton.jit
def _identity(N: tl.constexpr):
    n = tl.arange(0, N)
    return (n[:, None] == n[None, :]).to(tl.float32)


@triton.jit
def _square_norm(gram, N: tl.constexpr, EPS: tl.constexpr):
    # The squared Frobenius norm is the trace.
    return tl.maximum(tl.sum(tl.sum(gram * _identity(N), 1), 0), EPS * EPS)
