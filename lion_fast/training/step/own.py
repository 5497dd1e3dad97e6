"""What a caller brings along: an own network, own images, an own optimizer or schedule."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real

import torch
from torch import Tensor, nn

from lion_fast.config import TrainConfig
from lion_fast.data.dataset import DataSet
from lion_fast.errors import UserError
from lion_fast.models import DeeplySupervised
from lion_fast.training.machine.resolve import Resolved
from lion_fast.training.step.optimizers import MuonAdamW, build_optimizer, rate_factor

MakeModel = Callable[[int, tuple[int, int]], DeeplySupervised]
"""From the number of classes and the (height, width) of the images to a network."""
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Schedule = Callable[[int], float]
"""From a step, counted from 0, to the factor of the learning rate in it."""


@dataclass(frozen=True)
class Own:
    """A caller's parts of a run; None stands for what the config says."""

    model: DeeplySupervised | MakeModel | None = None
    images: DataSet | None = None
    optimizer: MakeOptimizer | None = None
    schedule: Schedule | None = None

    def names(self) -> list[str]:
        """Return which parts are the caller's: a checkpoint says so, for it cannot hold them."""
        return [name for name, part in vars(self).items() if part is not None]

    def check_same_as(self, names: list[str], run: object) -> None:
        """Raise UserError unless a run that had the parts `names` is now given the same ones."""
        for name in sorted({*names} ^ {*self.names()}):
            if name in names:
                raise UserError(f"{run} was trained with an own {name}: pass {name}= again")
            raise UserError(f"{run} was not trained with an own {name}: leave {name}= out")

    def described(self, config: TrainConfig) -> TrainConfig:
        """Return `config` with the name of own images as its dataset; check that they are a set."""
        if self.images is None:
            return config
        if not hasattr(self.images, "facts"):
            raise UserError(
                f"images is a {type(self.images).__name__}: make a set of it with"
                " ImageSet.from_tensors or ImageSet.from_datasets"
            )
        return replace(config, dataset=self.images.name)

    def network(self, images: DataSet) -> DeeplySupervised:
        """Return the caller's network, not initialised yet; raises UserError if it is of no use."""
        model = self.model
        assert model is not None
        if not isinstance(model, nn.Module):
            model = model(images.num_classes, images.image_size)
        if not isinstance(model, DeeplySupervised):
            raise UserError(
                f"model is a {type(model).__name__}: pass a subclass of DeeplySupervised, or a"
                " function from num_classes and image_size to one"
            )
        num_logits = model.heads.num_classes
        if num_logits != images.num_classes:
            raise UserError(
                f"model tells {num_logits} classes apart, but {images.name} has"
                f" {images.num_classes}: build it with num_classes={images.num_classes}"
            )
        return model

    def make_optimizer(
        self, model: DeeplySupervised, config: TrainConfig, resolved: Resolved
    ) -> torch.optim.Optimizer:
        """Return the run's optimizer; raises UserError if the engine cannot run it."""
        if self.optimizer is None:
            return build_optimizer(model, config, resolved)
        optimizer = self.optimizer(model.parameters())
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UserError(
                f"optimizer made a {type(optimizer).__name__}: return a torch.optim.Optimizer"
            )
        if resolved.engine == "graph" and not _capturable(optimizer):
            raise UserError(
                f"engine graph cannot capture this {type(optimizer).__name__}: take Adam or AdamW"
                " with capturable=True, or engine compile"
            )
        return optimizer

    def lr_factors(self, config: TrainConfig, device: torch.device) -> Tensor | None:
        """Return the schedule of all steps as (max_steps,) on `device`, or None.

        Raises UserError on a factor that is not finite or below 0.
        """
        schedule = self.schedule
        if schedule is None:
            if config.schedule == "constant":
                return None
            schedule = partial(rate_factor, config)
        factors: list[float] = []
        for step in range(config.max_steps):
            factor = schedule(step)
            if not isinstance(factor, Real | Tensor) or not 0 <= factor < float("inf"):
                raise UserError(
                    f"schedule gives {factor!r} at step {step}: give a finite factor, at least 0"
                )
            factors.append(float(factor))
        # CUDA's fused kernels read a float32 rate; on the CPU a factor of 1 changes no bit.
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        return torch.tensor(factors, dtype=dtype, device=device)


DEFAULT = Own()


def starts_at_zero(optimizer: torch.optim.Optimizer) -> bool:
    """Whether all state that the optimizer's first step makes is zeros, so that it can be undone.

    Other optimizers' state is dropped and made anew, which a captured graph would not see.
    """
    if isinstance(optimizer, torch.optim.SGD):
        return not any(group["momentum"] for group in optimizer.param_groups)
    return isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW | MuonAdamW)


def _capturable(optimizer: torch.optim.Optimizer) -> bool:
    groups = optimizer.param_groups
    return starts_at_zero(optimizer) and all(group.get("capturable") for group in groups)
