"""Kernels without Triton's compiler: to note launches, nothing needs compiling."""

from typing import Any

import stand_in_gpu


class _Noted:
    """A generated kernel whose launch is recorded by name."""

    def __init__(self, gpu: stand_in_gpu.Gpu, name: str) -> None:
        self._gpu, self._name = gpu, name

    def run(self, *args: Any, stream: int, **kwargs: Any) -> None:
        self._gpu.note(self._name, stream)

    def precompile(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing; the autotuner asks for it."""


def note_instead_of_compiling(gpu: stand_in_gpu.Gpu) -> None:
    """Replace the Triton kernels that Inductor generates by notes.

    Private API: AsyncCompile.triton, and the pool of compiling processes turned off.
    """
    import torch._inductor.config
    from torch._inductor.async_compile import AsyncCompile

    torch._inductor.config.compile_threads = 1

    def triton(self: Any, kernel_name: str, source_code: str, device_str: str = "cuda") -> _Noted:
        return _Noted(gpu, kernel_name)

    AsyncCompile.triton = triton  # type: ignore[method-assign]


def note_instead_of_launching(gpu: stand_in_gpu.Gpu) -> None:
    """Replace the launches of the project's own kernels by notes."""
    import torch

    from lion_fast.kernels.launch import Launch

    def run(self: Launch, device_of: torch.Tensor) -> None:
        with torch.cuda.device_of(device_of):
            gpu.note(self.kernel.__name__, torch.cuda.current_stream().cuda_stream)

    Launch.run = run  # type: ignore[method-assign]
