"""How Inductor makes fewer, longer kernels of a step: the reasons, and what they rest on.

torch.compile splits a channels_last batch-norm reduction over two or three kernels, because few
channels make few programs, and reads the map again in the kernel that normalises. Here such a
reduction is one *cooperative* kernel: programs that share a channel wait for each other inside it
and go on to normalise. And pointwise kernels that do not depend on each other run as one.

NOT MEASURED: the launches and bytes are counted (bench/bench_counts.py), no GPU has timed them.
Inductor counts what such a kernel reads twice, for the sums and for the map, once: true where the
second reading hits L2, which holds 40 to 50 MB on A100 and H100 (a map of DenseNet-DS takes at most
19 MB in bf16) and 6 MB on a V100. That is why it is an option.

Programs that wait for each other must all be on the GPU at once. A grid has no more of them than
the GPU has SMs, of 512 threads each, which ptxas then gives at most 128 registers, and the launch
is a cooperative one, which the driver refuses rather than let it hang; CUDA graphs keep that.
Inductor zeroes the counters in each call of a graph, so a replay finds them zero.

Inductor's own setting, `triton.force_cooperative_reductions`, counts as few launches and is not
taken: it divides the SMs by the channels, so that 72 channels get two programs in all.

Inductor's private API: compile_fx(inner_compile=), InductorChoices and FixedTritonConfig, as their
docstrings say to use them. Read in torch 2.14.1.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

OPTIONS: dict[str, Any] = {
    # Kernels that run as one share their grid: no reduction among them, which would lose programs.
    "combo_kernels": True,
    "combo_kernels_pointwise_only": True,
    # Lets the choices below be asked, and keeps the code apart from stock code in Inductor's cache.
    "triton.cooperative_reductions": True,
}

# A program sums rows of 32 channels, 64 bytes of bf16 that lie together, 256 positions at a time:
# with 16 warps, 16 values a thread. Below 2048 positions Inductor makes one kernel anyway, or the
# programs would wait longer than they sum; above 512 channels splitting is not needed.
_BLOCK_CHANNELS, _BLOCK_POSITIONS, _WARPS = 32, 256, 16
_MIN_POSITIONS, _MAX_CHANNELS = 2048, 512


def num_splits(channels: int, num_sms: int) -> int:
    """Return how many programs share a block of channels: the grid fits the SMs, one on each."""
    return max(1, num_sms // -(-channels // _BLOCK_CHANNELS))


def fewer_launches(graph: fx.GraphModule, inputs: Sequence[Any]) -> Any:
    """Compile with Inductor as this module says: a `backend` of torch.compile."""
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner
    from torch._inductor.virtualized import V

    # Asked anew for the forward and the backward, which are compiled in different threads.
    @functools.wraps(compile_fx_inner)
    def inner(*args: Any, **kwargs: Any) -> Any:
        with V.set_choices_handler(_choices()):
            return compile_fx_inner(*args, **kwargs)

    return compile_fx(graph, inputs, inner_compile=inner, config_patches=OPTIONS)


@functools.cache
def _choices() -> Any:
    """Return the choices. Inductor is imported only where a step is compiled."""
    from torch._inductor.choices import InductorChoices
    from torch._inductor.codegen.triton import FixedTritonConfig
    from torch._inductor.virtualized import V

    def size(expression: Any) -> int:
        return V.graph.sizevars.optimization_hint(expression, fallback=0)

    class Choices(InductorChoices):
        @staticmethod
        def should_use_cooperative_reduction(
            device: torch.device, numel: Any, reduction_numel: Any
        ) -> bool:
            is_long = size(reduction_numel) >= _MIN_POSITIONS
            return device.type == "cuda" and size(numel) <= _MAX_CHANNELS and is_long

        def triton_kernel_kwargs(
            self, kernel_cls: Any, features: Any, groups: Any, kernel_kwargs: dict[str, Any]
        ) -> dict[str, Any]:
            device = V.graph.get_current_device_or_throw()
            refused = kernel_kwargs.get("override_cooperative_reduction") is False
            if (
                refused
                or not features.is_reduction()
                or not self.should_use_cooperative_reduction(
                    device, features.numel, features.reduction_numel
                )
            ):
                return kernel_kwargs
            num_sms = torch.cuda.get_device_properties(device).multi_processor_count
            config = {
                "XBLOCK": _BLOCK_CHANNELS,
                "R0_BLOCK": _BLOCK_POSITIONS,
                "RSPLIT": num_splits(size(features.numel), num_sms),
                "num_warps": _WARPS,
                "num_stages": 1,
            }
            fixed = {
                "fixed_config": FixedTritonConfig(config),
                "override_persistent_reduction": False,
            }
            return {**kernel_kwargs, **fixed}

    return Choices()
