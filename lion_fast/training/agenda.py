"""When a run ends, and where it pauses between steps."""

from dataclasses import dataclass

from lion_fast.config import TrainConfig
from lion_fast.resolutions import FULL_SIZE, Resolutions
from lion_fast.training.step.history import History


@dataclass(frozen=True)
class Agenda:
    """When a run ends, and when it pauses between steps; periods in steps, 0 is never."""

    max_steps: int
    stop_at_target: bool
    eval_every: int
    checkpoint_every: int
    probe_every: int
    resolutions: Resolutions = FULL_SIZE
    """Steps that are enqueued together are of one size."""

    @classmethod
    def of(cls, config: TrainConfig) -> "Agenda":
        """Return what `config` asks for."""
        return cls(
            config.max_steps,
            config.stop_at_target,
            config.eval_every,
            config.checkpoint_every,
            config.gradient_ratio_every,
            Resolutions.parse(config.resolutions),
        )

    def is_over(self, history: History, enqueued: int) -> bool:
        """Whether no step is left to enqueue."""
        reached = self.stop_at_target and history.target_record is not None
        return reached or enqueued >= self.max_steps

    def steps_before_pause(self, enqueued: int, most: int) -> int:
        """Return a chunk, cut short before the next validation, checkpoint, probe, size or end."""
        periods = (self.eval_every, self.checkpoint_every, self.probe_every)
        gaps = [period - enqueued % period for period in periods if period]
        of_this_size = self.resolutions.steps_to_change(enqueued)
        if of_this_size is not None:
            gaps.append(of_this_size)
        return min(most, self.max_steps - enqueued, *gaps)
