"""Launch: a kernel with everything it is launched with. Running and compiling it read the same."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """One kernel launch, not yet made."""

    kernel: Any
    """the `@triton.jit` function"""
    grid: tuple[int, ...]
    args: dict[str, Any]
    """argument name -> tensor, number, constexpr value, or a tuple of them"""
    num_warps: int

    def run(self, device_of: Tensor) -> None:
        """Enqueue the kernel on the current stream of the device that holds `device_of`."""
        with torch.cuda.device_of(device_of):
            self.kernel[self.grid](**self.args, num_warps=self.num_warps)
