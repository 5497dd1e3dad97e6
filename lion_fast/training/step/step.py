"""One training step as device work, without a host sync: forward, backward, update, meter."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from lion_fast.config import TrainConfig
from lion_fast.data.batches import Batch
from lion_fast.errors import UserError
from lion_fast.models import DeeplySupervised, Losses
from lion_fast.training.machine.resolve import Resolved
from lion_fast.training.ranks.sharing import Sharing
from lion_fast.training.step.batch_counts import BatchCounts
from lion_fast.training.step.history import row_width, write_row
from lion_fast.training.step.losses import LossOptions
from lion_fast.training.step.own import DEFAULT, Own, starts_at_zero
from lion_fast.training.step.weight_casts import WeightCasts


class TrainStep:
    """Callable that trains `model` on one batch and writes one meter row."""

    def __init__(
        self,
        model: DeeplySupervised,
        config: TrainConfig,
        resolved: Resolved,
        own: Own = DEFAULT,
        sharing: Sharing | None = None,
    ) -> None:
        device = resolved.device
        self.model = model
        self.sharing = sharing
        self.optimizer = own.make_optimizer(model, config, resolved)
        self.scaler = torch.amp.GradScaler(device.type, enabled=resolved.precision == "fp16")
        self.loss = LossOptions.of(config)
        self.steps_done = torch.zeros((), dtype=torch.int64, device=device)
        self._one = torch.ones((), device=device)
        self._rates = _Rates(self.optimizer, own.lr_factors(config, device))
        self._aux_weight = torch.full((), self.loss.aux_weight, device=device)
        self._batch_counts = BatchCounts(model)
        self._way = _Way(model, self.loss, resolved, resolved.backbone)
        self._modules_at = resolved.modules_at
        self._way_of_modules = _Way(model, self.loss, resolved, "modules")

    @property
    def row_width(self) -> int:
        """Floats of a row that a step writes: what it measured and, where shared, a stop flag."""
        return row_width(len(list(self.model.heads))) + (self.sharing is not None)

    def compile(self) -> None:
        """Put forward and backward through torch.compile, as `nn.Module.compile` does, in place."""
        # A size of images is a shape, compiled by itself when its first batch comes; dynamic shapes
        # would only come of other runs in this process.
        for way in (self._way, self._way_of_modules):
            way.forward = torch.compile(way.forward, fullgraph=True, dynamic=False)

    def __call__(self, batch: Batch, row: Tensor) -> None:
        """Train on `batch`; write what it measured before the update into `row` (1 + 2H,).

        Where the step is shared, `batch` is this rank's part and `row` ends with a stop flag.
        """
        aux_weight = self.next_aux_weight()
        self._rates.set(self.steps_done)
        self.optimizer.zero_grad(set_to_none=True)

        is_of_modules = batch.images.shape[-1] in self._modules_at
        way = self._way_of_modules if is_of_modules else self._way

        def measure(part: Batch, row: Tensor) -> None:
            with way.weight_casts.in_place():
                losses = way.forward(part.images, part.labels, aux_weight)
            # Given its own seed, backward launches no fill for one.
            self.scaler.scale(losses.loss).backward(self._one)
            way.weight_casts.hand_back()
            write_row(row, losses)

        with self._batch_counts.ahead(self.steps_done):
            if self.sharing is None:
                measure(batch, row)
            else:
                self.sharing(measure, batch, row)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def next_aux_weight(self) -> Tensor:
        """Return the coming step's auxiliary weight ()."""
        return self.loss.aux_weight_at(self.steps_done, self._aux_weight)

    def state_dict(self) -> dict[str, object]:
        """Everything that training changes, as it stands."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "steps_done": self.steps_done,
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict()`; replaces the optimizer's tensors, so do it before a capture.

        It may come from another device, engine or precision: what is of those stays this step's.
        """
        self.model.load_state_dict(state["model"])
        # Of the device: a graph captures no AdamW without it.
        capturable = [group.get("capturable") for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, value in zip(self.optimizer.param_groups, capturable, strict=True):
            if value is not None:
                group["capturable"] = value
        self._rates.attach()
        if state["scaler"]:  # empty where the precision scaled no loss
            self.scaler.load_state_dict(state["scaler"])
        self.steps_done.copy_(state["steps_done"])

    @torch.no_grad()
    def become(self, fresh: "TrainStep") -> None:
        """Go on as `fresh`, a step of an equal `setup_key` that has done nothing yet.

        Every tensor that compiled code or a captured graph may read keeps its address.
        """
        assert starts_at_zero(self.optimizer)
        weights = fresh.model.state_dict()
        for name, tensor in self.model.state_dict().items():
            tensor.copy_(weights[name])
        for entries in self.optimizer.state.values():
            torch._foreach_zero_(list(entries.values()))
        pairs = zip(self.optimizer.param_groups, fresh.optimizer.param_groups, strict=True)
        for group, other in pairs:
            group.update({name: value for name, value in other.items() if name != "params"})
        self._rates.become(fresh._rates)
        self.scaler.load_state_dict(fresh.scaler.state_dict())
        self.loss = fresh.loss
        self._aux_weight.copy_(fresh._aux_weight)
        self.steps_done.zero_()
        if self.sharing is not None:
            self.sharing.start()

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Run steps inside for warm-up: what they change is restored on exit, in place."""
        model_state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        restore_optimizer = self._optimizer_restorer()
        scaler_state = self.scaler.state_dict()
        steps_done = self.steps_done.clone()
        yield
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                tensor.copy_(model_state[name])
            restore_optimizer()
            self.scaler.load_state_dict(scaler_state)
            self.steps_done.copy_(steps_done)
        self.optimizer.zero_grad(set_to_none=True)

    def _optimizer_restorer(self) -> Callable[[], None]:
        """Return what brings the optimizer's state back: in place where the state allows it."""
        optimizer = self.optimizer
        if not starts_at_zero(optimizer):
            saved = copy.deepcopy(optimizer.state_dict())

            def reload() -> None:
                optimizer.state.clear()
                optimizer.load_state_dict(saved)
                self._rates.attach()

            return reload
        before = {
            parameter: {name: value.clone() for name, value in entries.items()}
            for parameter, entries in optimizer.state.items()
        }

        def restore() -> None:
            for parameter, entries in optimizer.state.items():
                for name, value in entries.items():
                    values = before.get(parameter)
                    value.copy_(values[name]) if values else value.zero_()

        return restore


class _Rates:
    """The learning rates of a scheduled optimizer, as device scalars that a step sets itself."""

    def __init__(self, optimizer: torch.optim.Optimizer, factors: Tensor | None) -> None:
        self._optimizer, self._factors = optimizer, factors
        self._full = [float(group["lr"]) for group in optimizer.param_groups]
        self._now: list[Tensor] = []
        if factors is not None:
            self._now = [factors.new_tensor(rate) for rate in self._full]
            self.attach()

    def attach(self) -> None:
        """Let the optimizer read the scalars; to be called again when its state was loaded."""
        for group, rate in zip(self._optimizer.param_groups, self._now, strict=False):
            group["lr"] = rate

    def become(self, fresh: "_Rates") -> None:
        """Take over the course of `fresh`, in the scalars that are here where there are any."""
        self._full = fresh._full
        if self._factors is not None and fresh._factors is not None:
            self._factors.copy_(fresh._factors)
        else:
            self._factors, self._now = fresh._factors, fresh._now
        self.attach()

    def set(self, steps_done: Tensor) -> None:
        """Write the rates of the step that follows `steps_done` (), without a host sync."""
        if self._factors is None:
            return
        step = steps_done.long().clamp(max=len(self._factors) - 1)
        factor = self._factors.index_select(0, step.reshape(1)).reshape(())
        for rate, full in zip(self._now, self._full, strict=True):
            rate.copy_(factor * full)


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


class _Way:
    """How a step goes through the network: by its modules or by a backbone of kernels."""

    def __init__(
        self, model: DeeplySupervised, loss: LossOptions, resolved: Resolved, backbone: str
    ) -> None:
        self.forward = _forward(model, loss, resolved, backbone)
        # The fused backbones read fp32 weights and cast them themselves.
        is_fused = backbone != "modules"
        self.weight_casts = WeightCasts(
            model, torch.float32 if is_fused else resolved.compute_dtype
        )


def _forward(
    model: DeeplySupervised, loss: LossOptions, resolved: Resolved, backbone: str
) -> Callable[[Tensor, Tensor, Tensor], Losses]:
    smoothing, impl = loss.label_smoothing, resolved.impl
    # Handed on where it is asked for alone: a network's own `loss` need not know it.
    more = {"dice": loss.dice} if loss.dice else {}
    # A network of another kind has no other backbone, and is not asked about one.
    how = {"persistent": True} if backbone == "persistent" else {}

    def forward(images: Tensor, labels: Tensor, aux_weight: Tensor) -> Losses:
        with autocast(resolved):
            return model.loss(
                images, labels, aux_weight, label_smoothing=smoothing, impl=impl, **more
            )

    def fused(images: Tensor, labels: Tensor, aux_weight: Tensor) -> Losses:
        with autocast(resolved):
            pooled = model.pooled_taps(images, impl=impl, **how)
            return model.loss_from_pooled(
                pooled, labels, aux_weight, label_smoothing=smoothing, impl=impl
            )

    return forward if backbone == "modules" else fused


def made_current(device: torch.device) -> AbstractContextManager[object]:
    """Let a CUDA `device` be the current one: streams, captures and Triton launches go there."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


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
