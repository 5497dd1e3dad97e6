"""One training step as device work, without a host sync: forward, backward, update, meter."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lion_fast.config import TrainConfig
from lion_fast.data.batches import Batch
from lion_fast.errors import UserError
from lion_fast.kernels import HeadLosses
from lion_fast.models import DeeplySupervised
from lion_fast.training.history import write_row
from lion_fast.training.losses import LossOptions
from lion_fast.training.resolve import Resolved


class TrainStep:
    """Callable that trains `model` on one batch and writes one meter row."""

    def __init__(self, model: DeeplySupervised, config: TrainConfig, resolved: Resolved) -> None:
        device = resolved.device
        self.model = model
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.lr,
            betas=(0.9, 0.999),
            weight_decay=config.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=resolved.precision == "fp16")
        self.loss = LossOptions.of(config)
        self.steps_done = torch.zeros((), device=device)
        self._aux_weight_at = self.loss.aux_weight_schedule(device)
        self._forward = _forward(model, self.loss, resolved)

    def compile(self) -> None:
        """Put forward and backward through torch.compile, as `nn.Module.compile` does, in place."""
        # A run has one shape; dynamic shapes would only come of other runs in this process.
        self._forward = torch.compile(self._forward, fullgraph=True, dynamic=False)

    def __call__(self, batch: Batch, row: Tensor) -> None:
        """Train on `batch`; write what it measured before the update into `row` (1 + 2H,)."""
        aux_weight = self.next_aux_weight()
        self.steps_done.add_(1)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._forward(batch.images, batch.labels, aux_weight)
        self.scaler.scale(losses.loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        write_row(row, losses)

    def next_aux_weight(self) -> Tensor:
        """Return the coming step's auxiliary weight ()."""
        return self._aux_weight_at(self.steps_done)

    def state_dict(self) -> dict[str, object]:
        """Everything that training changes, as it stands."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "steps_done": self.steps_done,
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict()`; replaces the optimizer's tensors, so do it before a capture."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.steps_done.copy_(state["steps_done"])

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Run steps inside for warm-up: what they change is restored on exit, in place."""
        model_state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        optimizer_state = {
            parameter: {name: value.clone() for name, value in entries.items()}
            for parameter, entries in self.optimizer.state.items()
        }
        scaler_state = self.scaler.state_dict()
        steps_done = self.steps_done.clone()
        yield
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                tensor.copy_(model_state[name])
            for parameter, entries in self.optimizer.state.items():
                for name, value in entries.items():
                    # A fresh AdamW state is all zeros: what the first step would have made.
                    before = optimizer_state.get(parameter)
                    value.copy_(before[name]) if before else value.zero_()
            self.scaler.load_state_dict(scaler_state)
            self.steps_done.copy_(steps_done)
        self.optimizer.zero_grad(set_to_none=True)


def autocast(resolved: Resolved) -> torch.autocast:
    """Return the autocast context of the resolved precision."""
    dtype = resolved.compute_dtype
    # A captured graph must not reuse casts of weights that an earlier step made.
    return torch.autocast(
        resolved.device.type,
        dtype=dtype if dtype != torch.float32 else None,
        enabled=dtype != torch.float32,
        cache_enabled=False,
    )


def _forward(
    model: DeeplySupervised, loss: LossOptions, resolved: Resolved
) -> Callable[[Tensor, Tensor, Tensor], HeadLosses]:
    smoothing, impl = loss.label_smoothing, resolved.impl

    def forward(images: Tensor, labels: Tensor, aux_weight: Tensor) -> HeadLosses:
        with autocast(resolved):
            return model.loss(images, labels, aux_weight, label_smoothing=smoothing, impl=impl)

    return forward


@contextmanager
def float32_precision(resolved: Resolved) -> Iterator[None]:
    """Let fp32 products run in tf32 only when resolved so; restore the settings on exit.

    Set by torch's older calls, which keep both of its interfaces readable: `fp32_precision` of
    single operators makes `get_float32_matmul_precision()` and `cudnn.allow_tf32` raise, and
    Inductor's autotuned templates read those. Raises UserError where a caller has done so before.
    """
    cudnn = torch.backends.cudnn
    try:
        saved = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:
        raise UserError(
            "torch's fp32_precision settings are mixed, so they could not be restored: set them"
            " with torch.set_float32_matmul_precision and torch.backends.cudnn.allow_tf32 instead"
        ) from None
    saved_benchmark = cudnn.benchmark
    use_tf32 = resolved.precision == "tf32"
    torch.set_float32_matmul_precision("high" if use_tf32 else "highest")
    cudnn.allow_tf32 = use_tf32
    cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(saved[0])
        cudnn.allow_tf32 = saved[1]
        cudnn.benchmark = saved_benchmark
