"""Bytes of eager operations: every input read once, every output written once, an ATen call each.

Batch norm is two kernels that each read the map, so its inputs count twice. Copies that an
operation makes inside itself are not seen. Nor is what torch.compile runs: see bench_counts.py.
"""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
_NO_KERNEL = {
    aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided,
}  # fmt: skip
_WRITE_ONLY = {aten.copy_, aten.fill_, aten.zero_}
_TWO_PASSES = {
    aten.native_batch_norm, aten.native_batch_norm_backward, aten.cudnn_batch_norm,
    aten.cudnn_batch_norm_backward, aten._batch_norm_with_update, aten.batch_norm_backward,
}  # fmt: skip


class Traffic(TorchDispatchMode):
    """`with Traffic() as traffic:` sums the bytes of what runs inside, by `traffic.part`."""

    def __init__(self) -> None:
        super().__init__()
        self.part = "other"
        self.num_bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        is_view = returns and all(r.alias_info and not r.alias_info.is_write for r in returns)
        if func.overloadpacket not in _NO_KERNEL and not is_view:
            self.num_bytes[self.part] += _call_bytes(func, args, kwargs or {}, result)
        return result


def _call_bytes(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> int:
    read = written = 0
    declared = func._schema.arguments
    given = [*args, *[None] * (len(declared) - len(args))]
    for argument, value in zip(declared, given, strict=True):
        size = _size(kwargs.get(argument.name, value))
        writes = argument.alias_info is not None and argument.alias_info.is_write
        read += 0 if writes and func.overloadpacket in _WRITE_ONLY else size
        written += size if writes else 0
    if func.overloadpacket in _TWO_PASSES:
        read *= 2
    outputs = result if isinstance(result, list | tuple) else (result,)
    for output, of in zip(outputs, func._schema.returns, strict=False):
        written += 0 if of.alias_info else _size(output)
    return read + written


def _size(value: Any) -> int:
    """Return the bytes of distinct elements: an expanded axis is read once."""
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    if not isinstance(value, torch.Tensor):
        return 0
    num = value.element_size()
    for size, stride in zip(value.shape, value.stride(), strict=True):
        num *= size if stride else min(size, 1)
    return num
