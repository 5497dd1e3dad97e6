"""Launch: a kernel with everything it is launched with. Running and compiling it read the same."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

RECORDED: "list[Launch] | None" = None
"""Where launches go instead of the GPU while `ahead.recorded` is entered; of all threads, for a
backward pass runs in one of its own."""


class Launch(NamedTuple):
    """One kernel launch, not yet made."""

    kernel: Any
    """the `@triton.jit` function"""
    grid: tuple[int, ...]
    args: dict[str, Any]
    """argument name -> tensor, number, constexpr value, None, or a tuple of them"""
    num_warps: int
    num_stages: int = 3
    """stages of a pipelined loop; 3 is Triton's own default"""
    fp_fusion: bool = True
    """whether products and sums may be fused into one rounding"""
    max_registers: int | None = None
    """of a thread, where the compiler would take more; what does not fit then lies in memory"""

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told, when the kernel runs and when it is compiled beforehand."""
        limit = {} if self.max_registers is None else {"maxnreg": self.max_registers}
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": self.fp_fusion,
            **limit,
        }

    def run(self, device_of: Tensor) -> None:
        """Enqueue the kernel on the current stream of the device that holds `device_of`."""
        if RECORDED is not None:
            RECORDED.append(self)
            return
        with torch.cuda.device_of(device_of):
            self.kernel[self.grid](**self.args, **self.options)
