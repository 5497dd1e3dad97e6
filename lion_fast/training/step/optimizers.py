"""The config's optimizer and schedule: AdamW, Muon with AdamW beside it, or plain descent."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from lion_fast.config import TrainConfig
from lion_fast.kernels import Impl, muon_update_
from lion_fast.models import DeeplySupervised
from lion_fast.training.machine.resolve import Resolved

_BETAS = (0.9, 0.999)
_EPS = 1e-8


def build_optimizer(
    model: DeeplySupervised, config: TrainConfig, resolved: Resolved
) -> torch.optim.Optimizer:
    """Return the optimizer of `config` for all parameters of `model`."""
    if config.optimizer == "muon":
        matrices, others = split_for_muon(model)
        return MuonAdamW(
            matrices,
            others,
            muon_lr=config.muon_lr,
            momentum=config.muon_momentum,
            muon_weight_decay=config.muon_weight_decay,
            lr=config.lr,
            weight_decay=config.weight_decay,
            impl=resolved.impl,
        )
    if config.optimizer == "sgd":
        # Gradient descent as proofs have it: no momentum, no decay, so no state either. A CUDA
        # graph can capture the fused form, which also undoes loss scaling.
        return torch.optim.SGD(model.parameters(), lr=config.lr, fused=True)
    return torch.optim.AdamW(
        model.parameters(),
        lr=config.lr,
        betas=_BETAS,
        weight_decay=config.weight_decay,
        fused=True,
        capturable=resolved.device.type == "cuda",
    )


def split_for_muon(
    model: DeeplySupervised,
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the backbone's weights of two dimensions or more, and all other parameters.

    Muon's authors keep it to hidden layers: heads, norms and biases are AdamW's.
    """
    matrices = [weight for weight in model.backbone_parameters() if weight.ndim >= 2]
    taken = set(matrices)
    return matrices, [p for p in model.parameters() if p not in taken]


def rate_factor(config: TrainConfig, step: int) -> float:
    """Return the factor of every learning rate in `step`, counted from 0.

    (step + 1) / lr_warmup_steps up to 1, then down to lr_floor in lr_cooldown_steps more, in a line
    or in half a cosine, and there it stays. It does not depend on max_steps, which a resumed run
    may change.
    """
    if config.schedule == "constant":
        return 1.0
    up, down = config.lr_warmup_steps, config.lr_cooldown_steps
    if step < up:
        return (step + 1) / up
    if not down:
        return 1.0
    left = max(0.0, 1 - (step - up) / down)
    if config.schedule == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    return left * (1 - config.lr_floor) + config.lr_floor


class MuonAdamW(torch.optim.Optimizer):
    """Muon for `matrices` and fused AdamW for `others`, without a host sync, capturable.

    Both are decoupled: weight decay is scaled by the rate. Loss scaling is undone inside, and a
    step whose gradients overflowed changes no weight and no average.
    """

    # Tells GradScaler to hand over `grad_scale` and `found_inf` instead of waiting for the latter.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        *,
        muon_lr: float,
        momentum: float,
        muon_weight_decay: float,
        lr: float,
        weight_decay: float,
        impl: Impl = "auto",
    ) -> None:
        groups = [
            {
                "params": list(matrices),
                "lr": muon_lr,
                "momentum": momentum,
                "weight_decay": muon_weight_decay,
            },
            # `capturable` and `fused` let a loaded step counter stay on its device, in fp32.
            {
                "params": list(others),
                "lr": lr,
                "weight_decay": weight_decay,
                "capturable": True,
                "fused": True,
            },
        ]
        # A network without convolutions, or all of one kind, leaves a group empty.
        super().__init__(groups, {})
        self._impl = impl
        self._constant_rates: dict[tuple[float, torch.device], Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take one step with every parameter that has a gradient."""
        scale = getattr(self, "grad_scale", None)
        overflowed = getattr(self, "found_inf", None)
        muon, adam = self.param_groups
        self._muon(muon, scale, overflowed)
        self._adam(adam, scale, overflowed)

    def _muon(self, group: dict[str, Any], scale: Tensor | None, overflowed: Tensor | None) -> None:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        if not weights:
            return
        grads = [weight.grad for weight in weights]
        averages = []
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["average"] = torch.zeros_like(weight)
            averages.append(state["average"])
        rate = self._rate(group["lr"], weights[0].device)
        if scale is not None:
            grads = list(torch._foreach_mul(grads, scale.reciprocal()))
        if overflowed is not None:
            # A gradient that equals the average leaves it as it is, and a rate of 0 the weight.
            bad = overflowed.bool()
            pairs = zip(grads, averages, strict=True)
            grads = [torch.where(bad, average, grad) for grad, average in pairs]
            rate = rate * (1 - overflowed)
        muon_update_(
            weights,
            grads,
            averages,
            rate.reshape(()),
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            impl=self._impl,
        )

    def _rate(self, rate: float | Tensor, device: torch.device) -> Tensor:
        """Return the rate on `device`; a constant one is written there once."""
        if isinstance(rate, Tensor):
            return rate
        if (rate, device) not in self._constant_rates:
            self._constant_rates[rate, device] = torch.full((), rate, device=device)
        return self._constant_rates[rate, device]

    def _adam(self, group: dict[str, Any], scale: Tensor | None, overflowed: Tensor | None) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            grad_scale=scale,
            found_inf=overflowed,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=_EPS,
            maximize=False,
        )
