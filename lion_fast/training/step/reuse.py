"""Steps that are kept from one run to the next: compiled code, captured graphs, resident data.

Runs of a study differ in seed, initialiser and alpha, not in shape. What they share is baked into
compiled code and graphs; the rest is tensors, which a new run fills in place.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lion_fast.config import TrainConfig, fields_of
from lion_fast.data.batches import Loader
from lion_fast.data.dataset import DataSet
from lion_fast.data.sources import data_fingerprint
from lion_fast.errors import UserError
from lion_fast.training.machine.paths import anchored
from lion_fast.training.machine.resolve import Resolved, resolve
from lion_fast.training.step.engine import Engine
from lion_fast.training.step.own import Own
from lion_fast.training.step.step import TrainStep

# Fields that a run resets in place or that only its record knows. Every other field is baked in, so
# that a field added later keeps runs apart until someone has thought of it.
_RESET = fields_of("housekeeping") - {"data_dir"} | {
    *("seed", "init", "whiten", "head_bias", "aux_weight"),
    *("target_accuracy", "window", "stop_at_target", "eval_every", "gradient_ratio_every"),
}
# Numbers that only a captured graph holds: elsewhere Python hands them to each step anew.
_CAPTURED = {
    *("lr", "weight_decay", "muon_lr", "muon_momentum", "muon_weight_decay"),
    *("schedule", "lr_warmup_steps", "lr_cooldown_steps", "lr_floor", "aux_warmup_steps"),
}


def setup_key(config: TrainConfig, resolved: Resolved | None = None) -> tuple[Hashable, ...]:
    """Return all that is baked into the step of `config` on this machine.

    Runs of equal keys share one set-up where `train` is given the same `StepCache` and the data
    that they name have not changed. resolved: that of `config` where it is known. Raises UserError
    on what cannot run here.
    """
    return _baked(anchored(config), resolved or resolve(config))


def _baked(config: TrainConfig, resolved: Resolved) -> tuple[Hashable, ...]:
    free = _RESET if resolved.engine == "graph" else _RESET | _CAPTURED
    chosen: dict[str, object] = config.to_dict() | resolved.to_dict()
    baked = tuple((name, value) for name, value in sorted(chosen.items()) if name not in free)
    # Inductor's code for a CPU is written for so many threads.
    return (*baked, torch.get_num_threads())


@dataclass(frozen=True)
class Prepared:
    """A step that is ready to train again, with what it reads and what executes it."""

    images: DataSet
    step: TrainStep
    engine: Engine
    loader: Loader | None
    """One that a graph may have captured; None where every run makes its own."""


class StepCache:
    """Keeps the steps of the last few runs for runs to come: `train(config, reuse=cache)`.

    A held step keeps its weights, its graphs' memory and its images, so that at most `capacity` are
    held; the one whose run ended longest ago goes first, before another is prepared. Not for
    several threads at a time. Raises UserError if capacity is below 1.
    """

    def __init__(self, capacity: int = 2) -> None:
        if capacity < 1:
            raise UserError(f"capacity is {capacity}: it must be at least 1")
        self.capacity = capacity
        self._held: OrderedDict[Hashable, Prepared] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def take(self, key: Hashable) -> Prepared | None:
        """Hand over what is held under `key`, or make room for it and return None.

        A run that fails does not bring it back: a step of unknown state is not kept.
        """
        prepared = self._held.pop(key, None)
        if prepared is None:
            self._shrink(self.capacity - 1)
        return prepared

    def keep(self, key: Hashable, prepared: Prepared) -> None:
        """Hold `prepared`, whose run has ended well, for the next run of `key`."""
        self._held[key] = prepared
        self._shrink(self.capacity)

    def clear(self) -> None:
        """Let go of everything."""
        self._shrink(0)

    def _shrink(self, size: int) -> None:
        while len(self._held) > size:
            _, prepared = self._held.popitem(last=False)
            if prepared.loader is not None:
                prepared.loader.close()


class Shelf(NamedTuple):
    """Where in a cache a run's step is looked for, and kept once the run has ended."""

    cache: StepCache
    key: Hashable

    @classmethod
    def of(
        cls, cache: StepCache, config: TrainConfig, resolved: Resolved, own: Own
    ) -> "Shelf | None":
        """Return the place of a run, whose paths are absolute; None where it has none.

        An own network or optimizer has state that nothing here can reset. Own images are kept apart
        by their identity: the same object is the same data.
        """
        if {*own.names()} - {"images"}:
            return None
        images = () if own.images is None else (id(own.images),)
        return cls(cache, (*_baked(config, resolved), data_fingerprint(config), *images))

    def take(self) -> Prepared | None:
        """Hand over the step that is held; see `StepCache.take`."""
        return self.cache.take(self.key)

    def keep(self, prepared: Prepared) -> None:
        """Hold a step for the next run of its like."""
        self.cache.keep(self.key, prepared)
