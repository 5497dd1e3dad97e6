"""Everything a run has measured, in memory, in its folder and in its checkpoints."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lion_fast.config import TrainConfig
from lion_fast.errors import SaidElsewhere, UserError
from lion_fast.figures import drawn
from lion_fast.resolutions import Resolutions
from lion_fast.training.folder.checkpoint import save_checkpoint
from lion_fast.training.folder.plots import plot_curves
from lion_fast.training.folder.run_folder import CsvLog, RunFolder
from lion_fast.training.folder.summary import Summary
from lion_fast.training.measure.probe import GradientProbe
from lion_fast.training.measure.validate import Validation
from lion_fast.training.step.history import (
    PIXEL_HITS,
    History,
    NonFiniteLoss,
    record_columns,
    record_values,
)


class RunRecord:
    """Keeps steps, validations and probes; mirrors them to CSV files as they come.

    num_aux: auxiliary heads. facts: what else every checkpoint holds. is_dense: whether they give a
    class to every pixel.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: TrainConfig,
        num_aux: int,
        facts: dict[str, Any],
        *,
        is_dense: bool = False,
    ) -> None:
        self.folder = folder
        self.history = History(
            num_heads=num_aux + 1,
            batch_size=config.batch_size,
            window=config.window,
            target=config.target_accuracy,
            hits_of=PIXEL_HITS if is_dense else None,
            resolutions=Resolutions.parse(config.resolutions),
        )
        self._config, self._facts = config.to_dict(), facts
        self._is_probed = config.gradient_ratio_every > 0
        self._wants_tensorboard = config.tensorboard
        self._rates = "--lr or --muon-lr" if config.optimizer == "muon" else "--lr"
        self._title = f"{Path(config.dataset).stem}  {config.arch}  {config.init}"
        self.validations: list[list[float]] = []
        self.probes: list[list[float]] = []
        self._num_aux = num_aux
        self.saved_step: int | None = None
        self._logs: dict[str, CsvLog | _NoLog] = {}
        self._tensorboard: Any = None

    def open(self) -> None:
        """Write the CSV files up to the present step, and keep them open for what follows."""
        heads = range(self.history.num_heads)
        steps = [record_values(self.history, record) for record in self.history.records]
        self._open_log("metrics", record_columns(len(heads)), steps)
        columns = ["step", "seconds", "loss", *(f"accuracy_head{h}" for h in heads)]
        self._open_log("validation", columns, self.validations)
        if self._is_probed or self.probes:
            self._open_log("probes", GradientProbe.columns(self._num_aux), self.probes)
        if self._wants_tensorboard:
            self._tensorboard = _tensorboard_writer(
                self.folder.path, purge_step=len(self.history) + 1
            )

    def _open_log(
        self, name: str, columns: Sequence[str], rows: Iterable[Sequence[object]]
    ) -> None:
        self._logs[name] = CsvLog(self.folder.path / f"{name}.csv", columns, rows)

    def add_steps(self, rows: Tensor, seconds: float) -> None:
        """Record finished steps; see `History.extend`."""
        done = len(self.history)
        try:
            self.history.extend(rows, seconds)
        except NonFiniteLoss as error:
            raise UserError(f"{error}: {self._remedy()}") from None
        finally:
            for record in self.history.records[done:]:
                self._logs["metrics"].append(record_values(self.history, record))
                if self._tensorboard:
                    accuracy = self.history.accuracy(record)
                    self._tensorboard.add_scalar("train/loss", record.loss, record.step)
                    self._tensorboard.add_scalar("train/accuracy", accuracy, record.step)

    def _remedy(self) -> str:
        """Return what may keep the loss finite, of what this run has not got already.

        A run that goes on keeps its rates, and may take another precision.
        """
        remedy = f"start anew with a lower {self._rates}"
        more_exact = self._facts.get("precision") != "fp32"
        if self.saved_step is None:
            remedy += " or with --precision fp32" if more_exact else ""
            return f"{remedy}; no checkpoint was written yet"
        folder = self.folder.path
        if more_exact:
            remedy += f", or go on with --resume {folder} --precision fp32"
        return f"{remedy}; the checkpoint of step {self.saved_step} is kept in {folder}"

    def is_validated(self, step: int) -> bool:
        """Whether the newest validation is that of `step`."""
        return bool(self.validations) and self.validations[-1][0] == step

    def add_validation(self, validation: Validation) -> None:
        """Record a pass over the test split at the present step."""
        step = len(self.history)
        if self.is_validated(step):
            return
        row = [step, self.history.seconds, validation.loss, *validation.accuracy_per_head]
        self.validations.append(row)
        self._logs["validation"].append(row)
        if self._tensorboard:
            self._tensorboard.add_scalar("val/accuracy", validation.accuracy, step)

    def add_probe(self, probe: GradientProbe) -> None:
        """Record a gradient probe."""
        if self.probes and self.probes[-1][0] == probe.step:
            return
        self.probes.append(probe.row())
        self._logs["probes"].append(self.probes[-1])

    @property
    def last_gradient_ratio(self) -> float | None:
        """Newest probed ratio."""
        return self.probes[-1][1] if self.probes else None

    def flush(self) -> None:
        """Hand everything recorded so far to the operating system."""
        for log in self._logs.values():
            log.flush()

    def close(self) -> None:
        """Close the files."""
        for log in self._logs.values():
            log.close()
        if self._tensorboard:
            self._tensorboard.close()

    def save(self, training_state: dict[str, Any]) -> None:
        """Write a checkpoint of `training_state` and of this record, then flush the files."""
        save_checkpoint(
            self.folder.path,
            {
                "training": training_state,
                "config": self._config,
                "history": self.history.state(),
                "validations": self.validations,
                "probes": self.probes,
                **self._facts,
            },
        )
        self.saved_step = len(self.history)
        self.flush()

    def write_config(self) -> None:
        """Write config.json, where a run that goes on was told something anew."""
        self.folder.write_config(self._config)

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Restore from a checkpoint that `save` wrote."""
        self.history.load_state(checkpoint["history"])
        self.validations = checkpoint["validations"]
        # Earlier versions measured less.
        width = len(GradientProbe.columns(self._num_aux))
        self.probes = [[*row, *[float("nan")] * (width - len(row))] for row in checkpoint["probes"]]
        self.saved_step = len(self.history)

    def finish(self, summary: Summary) -> list[str]:
        """Write summary.json, env.txt and curves.png; return notes on what is missing."""
        self.flush()
        self.folder.write_json("summary.json", summary.to_dict())
        facts = summary.environment
        self.folder.write_text("env.txt", "".join(f"{k}: {v}\n" for k, v in facts.items()))
        notes: list[str] = []
        with drawn("curves.png", notes.append):
            plot_curves(self.history, self.folder.path / "curves.png", self._title)
        return notes


class UnwrittenRecord(RunRecord):
    """The record of a rank that does not lead: the same in memory, and no file."""

    def open(self) -> None:
        """Open nothing."""
        self._logs = {name: _NoLog() for name in ("metrics", "validation", "probes")}

    def add_steps(self, rows: Tensor, seconds: float) -> None:
        """Record finished steps; raise SaidElsewhere where rank 0 says why the run ends."""
        try:
            super().add_steps(rows, seconds)
        except UserError as error:
            raise SaidElsewhere(str(error)) from None

    def write_config(self) -> None:
        """Leave it to rank 0."""

    def save(self, training_state: dict[str, Any]) -> None:
        """Note that rank 0 saves here."""
        self.saved_step = len(self.history)

    def finish(self, summary: Summary) -> list[str]:
        """Leave the end to rank 0."""
        return []


class _NoLog:
    """Stands for a CSV file that another process writes."""

    def append(self, row: Sequence[object]) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _tensorboard_writer(path: Path, purge_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "--tensorboard needs the package tensorboard: pip install tensorboard"
        ) from None
    return SummaryWriter(str(path), purge_step=purge_step)
