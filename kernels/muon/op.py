"""muon_update_: momentum, orthogonalisation, decay and update of many weights as one op.

    average += (1 - momentum) (grad - average)
    U        = grad + momentum (average - grad)   Nesterov's look ahead
    X_0      = U / max(|U|_F, eps)              (n, m), n <= m, else transposed
    X_k+1    = a X_k + (b A_k + c A_k^2) X_k,   A_k = X_k X_k^T   five times
    weight   = (1 - lr weight_decay) weight - lr max(1, rows / columns)^(1/2) X_5

This is Muon (Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks",
2024, https://kellerjordan.github.io/posts/muon/), with its quintic Newton-Schulz iteration:
a, b, c = 3.4445, -4.7750, 2.0315 carry every singular value to about 1.

The textbook multiplies the (n, m) matrix ten times. Here X meets two products, whatever the number
of iterations: with p(A) = a + b A + c A^2, X_k+1 = p(A_k) X_k and A_k+1 = p(A_k) A_k p(A_k), so the
small (n, n) Gram matrix runs the iteration and Q = p(A_4) ... p(A_0) acts on X_0 once. In exact
arithmetic both are the same. A convolution of 8 channels has an 8 x 8 Gram matrix.

A weight is flattened to (first dimension, rest), the rest in the order of its memory: columns may
be permuted before orthogonalisation or after.
"""

import functools
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from ..dispatch import Impl, resolve_impl
from .launch import COEFFICIENTS, EPS, ITERATIONS, MAX_ROWS, muon_launch, scale_of


@torch.no_grad()
def muon_update_ref_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    averages: Sequence[Tensor],
    lr: Tensor,
    *,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
) -> None:
    """Compute `muon_update_` as the textbook does, weight by weight: the truth in tests.

    Arithmetic is the weights' own: fp64 for fp64.
    """
    _check(weights, grads, averages, lr, momentum, weight_decay)
    with torch.autocast(lr.device.type, enabled=False):
        _textbook_(weights, grads, averages, lr, momentum, weight_decay)


def _textbook_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    averages: Sequence[Tensor],
    lr: Tensor,
    momentum: float,
    weight_decay: float,
) -> None:
    for weight, grad, average in zip(weights, grads, averages, strict=True):
        average.lerp_(grad, 1 - momentum)
        ahead = grad.lerp(average, momentum).flatten(1)
        update = _newton_schulz(ahead.T).T if len(ahead) > ahead.shape[1] else _newton_schulz(ahead)
        weight.mul_(1 - lr * weight_decay)
        weight.sub_(lr * scale_of(weight) * update.reshape(weight.shape))


def _newton_schulz(x: Tensor) -> Tensor:
    linear, cubic, quintic = COEFFICIENTS
    x = x / x.norm().clamp_min(EPS)
    for _ in range(ITERATIONS):
        a = x @ x.T
        x = linear * x + (cubic * a + quintic * a @ a) @ x
    return x


@torch.library.custom_op("lion_fast::muon_update_", mutates_args=("weights", "averages"))
def _muon_update_op(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    averages: Sequence[Tensor],
    lr: Tensor,
    momentum: float,
    weight_decay: float,
) -> None:
    """Update matrices of at most MAX_ROWS rows or columns, any strides but equal ones."""
    muon_launch(weights, grads, averages, lr, momentum, weight_decay).run(device_of=lr)


@_muon_update_op.register_fake
def _(weights, grads, averages, lr, momentum, weight_decay):
    return None


def _grouped_(
    weights: list[Tensor],
    grads: list[Tensor],
    averages: list[Tensor],
    lr: Tensor,
    momentum: float,
    weight_decay: float,
) -> None:
    """Update matrices by batched products: those of one shape, and of as many rows, share them."""
    torch._foreach_lerp_(averages, grads, 1 - momentum)
    aheads = torch._foreach_lerp(grads, averages, momentum)
    if weight_decay:
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
    of_shape = defaultdict(list)
    for index, weight in enumerate(weights):
        of_shape[weight.shape].append(index)
    of_rows = defaultdict(list)
    for shape, indices in of_shape.items():
        # (k, rows, columns); one matrix needs no copy.
        single = len(indices) == 1
        stack = aheads[indices[0]][None] if single else torch.stack([aheads[i] for i in indices])
        of_rows[min(shape)].append((indices, stack))
    order: list[int] = []
    updates: list[Tensor] = []
    for found in of_rows.values():
        stacks = [stack for _, stack in found]
        for (indices, _), step in zip(found, _by_gram(stacks, lr), strict=True):
            order += indices
            scale = scale_of(weights[indices[0]])
            updates += (step if scale == 1.0 else step * scale).unbind()
    torch._foreach_sub_([weights[i] for i in order], updates)


def _by_gram(stacks: list[Tensor], lr: Tensor) -> list[Tensor]:
    """Return lr X_5 of every stack; their Gram matrices are of one size."""
    # u @ u^T for (n, m), u^T @ u for (m, n)
    grams = [u.mT @ u if _is_tall(u) else u @ u.mT for u in stacks]
    gram = grams[0] if len(grams) == 1 else torch.cat(grams)
    square = gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(EPS**2)[:, None, None]
    q = _polynomial(gram / square) * (lr / square.sqrt())
    parts = q.split([len(u) for u in stacks])
    return [u @ p.mT if _is_tall(u) else p @ u for u, p in zip(stacks, parts, strict=True)]


def _is_tall(stack: Tensor) -> bool:
    return stack.shape[1] > stack.shape[2]


def _polynomial(a: Tensor) -> Tensor:
    """Return p(A_4) ... p(A_0) for a batch of (n, n) Gram matrices A_0."""
    linear, cubic, quintic = COEFFICIENTS
    q = None
    for k in range(ITERATIONS):
        p = torch.baddbmm(a, a, a, beta=cubic, alpha=quintic)
        p.diagonal(dim1=1, dim2=2).add_(linear)
        q = p if q is None else p @ q
        if k < ITERATIONS - 1:
            a = p @ a @ p
    assert q is not None
    return q


@torch.no_grad()
def muon_update_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    averages: Sequence[Tensor],
    lr: Tensor,
    *,
    momentum: float = 0.95,
    weight_decay: float = 0.0,
    impl: Impl = "auto",
) -> None:
    """Take one Muon step with every weight, in place (the formula heads this file).

    weights: tensors of two dimensions or more, contiguous or channels_last. grads, averages: of
    their shapes; averages in their layout, zero before the first step, updated in place as well.
    lr: 0-D tensor on the device, so that a captured graph follows a schedule.

    With Triton one launch takes all weights whose smaller side is at most 64, a program each.
    Larger ones, and every one without Triton, take batched matrix products: those of one shape
    share two, those of as many rows the iteration, nothing waits for the device, and a CUDA graph
    can capture it. There a matrix product is PyTorch's, TF32 if that is allowed. Autocast changes
    nothing.

    fp32; fp64 without Triton. On compute capability 9 and 10 the kernel's products run on tensor
    cores, each factor as two fp16 values that keep fp32's error (`halves.py`). In fp32 an entry of
    X_5, whose size is at most about 1, is within 1e-3 of the textbook in fp64 and typically within
    1e-5 (tests/test_muon.py).

    Raises ValueError on inputs that do not fit each other.
    """
    _check(weights, grads, averages, lr, momentum, weight_decay)
    if not weights:
        return
    matrices = [
        [_matrix(tensor, weight) for tensor in (weight, grad, average)]
        for weight, grad, average in zip(weights, grads, averages, strict=True)
    ]
    in_kernel = resolve_impl(impl, lr.device, weights[0].dtype) == "triton"
    small = [m for m in matrices if in_kernel and min(m[0].shape) <= MAX_ROWS]
    large = [m for m in matrices if not in_kernel or min(m[0].shape) > MAX_ROWS]
    if small:
        _muon_update_op(*_transposed(small), lr, momentum, weight_decay)
    if large:
        with torch.autocast(lr.device.type, enabled=False):
            _grouped_(*_transposed(large), lr, momentum, weight_decay)


def _transposed(rows: list[list[Tensor]]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return [w for w, _, _ in rows], [g for _, g, _ in rows], [v for _, _, v in rows]


def _matrix(tensor: Tensor, weight: Tensor) -> Tensor:
    """Return `tensor` as (rows, columns) in the order of the weight's memory, a view if it can."""
    if weight.ndim == 4 and not weight.is_contiguous():
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(len(weight), -1)


def _dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or (
        tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )


def _steps(tensor: Tensor) -> list[int]:
    return [step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def _check(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    averages: Sequence[Tensor],
    lr: Tensor,
    momentum: float,
    weight_decay: float,
) -> None:
    if not len(weights) == len(grads) == len(averages):
        raise ValueError(
            f"{len(weights)} weights, {len(grads)} grads, {len(averages)} averages: "
            "give one of each per weight"
        )
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum is {momentum}: it must lie in 0 <= momentum < 1")
    if not weight_decay >= 0.0:
        raise ValueError(f"weight_decay is {weight_decay}: it must be at least 0")
    if not isinstance(lr, Tensor) or lr.ndim or not lr.is_floating_point():
        raise ValueError(f"lr is {lr}: give a 0-D floating-point tensor on the weights' device")
    for i, (weight, grad, average) in enumerate(zip(weights, grads, averages, strict=True)):
        describe = functools.partial(_describe, i)
        if weight.ndim < 2 or weight.numel() == 0 or not _dense(weight):
            raise ValueError(
                f"{describe('weights', weight)}: give two dimensions or more, none of 0, "
                "contiguous or channels_last"
            )
        if weight.dtype not in (torch.float32, torch.float64) or weight.dtype != weights[0].dtype:
            raise ValueError(f"{describe('weights', weight)}: give all in fp32, or all in fp64")
        for name, tensor in (("grads", grad), ("averages", average)):
            if (tensor.shape, tensor.dtype) != (weight.shape, weight.dtype):
                raise ValueError(f"{describe(name, tensor)}: give {describe('weights', weight)}")
        if _steps(average) != _steps(weight):
            raise ValueError(f"averages[{i}] has another memory layout than weights[{i}]")
        if not weight.device == grad.device == average.device == lr.device:
            raise ValueError(f"weights[{i}], its grad, its average and lr lie on several devices")


def _describe(index: int, name: str, tensor: Tensor) -> str:
    return f"{name}[{index}] is {tuple(tensor.shape)} {tensor.dtype}"
