"""What the parts of a step's batch contribute, in one vector that is reduced at once."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class FlatVector:
    """Gradients, running statistics, meter row and stop flag of one step, in one fp32 vector.

    | gradients | running statistics | loss and H losses: averaged | H hit counts | flag: summed |

    Gradients are views with the strides of their weights, so that channels_last survives and a
    fused optimizer takes them. with_statistics: whether parts have running statistics of their own.
    """

    def __init__(
        self, model: nn.Module, num_heads: int, device: torch.device, *, with_statistics: bool
    ) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        norms = [norm for norm in model.modules() if isinstance(norm, _BatchNorm)]
        averages = [(norm.running_mean, norm.running_var) for norm in norms if with_statistics]
        self._statistics = [each for pair in averages for each in pair if each is not None]
        tensors = [*self._parameters, *self._statistics]
        num_values = sum(tensor.numel() for tensor in tensors)
        self.values = torch.zeros(num_values + 1 + 2 * num_heads + 1, device=device)
        offset, self._views = 0, []
        for tensor in tensors:
            self._views.append(self.values.as_strided(tensor.shape, tensor.stride(), offset))
            offset += tensor.numel()
        self.row = self.values[num_values:-1]
        self.flag = self.values[-1:]
        self._means = self.values[: -num_heads - 1]

    def collect(self) -> None:
        """Copy gradients and statistics in; `row` and `flag` are written by others.

        A weight that the loss does not reach has no gradient, here as on every other rank.
        """
        pairs = [
            (view, value)
            for view, value in zip(self._views, self._sources(), strict=True)
            if value is not None
        ]
        torch._foreach_copy_([view for view, _ in pairs], [value for _, value in pairs])

    def _sources(self) -> list[Tensor | None]:
        return [*(parameter.grad for parameter in self._parameters), *self._statistics]

    def hand_out(self, num_parts: int) -> None:
        """Divide what is averaged by the number of parts; give gradients and statistics back."""
        self._means.div_(num_parts)
        split = len(self._parameters)
        for parameter, view in zip(self._parameters, self._views[:split], strict=True):
            if parameter.grad is not None:
                parameter.grad = view
        if self._statistics:
            torch._foreach_copy_(self._statistics, self._views[split:])
