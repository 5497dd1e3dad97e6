"""What each command of `lion-fast` takes; tyro makes parser and help of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lion_fast.config import Engine, TrainConfig
from lion_fast.errors import UserError


@dataclass(frozen=True, kw_only=True)
class _Unchecked(TrainConfig):
    def __post_init__(self) -> None:
        """Leave checking to `TrainConfig`, after parsing: a bad value then ends in our one line."""


@dataclass
class TrainArguments:
    """Train a network; report steps and seconds to the target accuracy."""

    preset: Literal["quickstart", "paper", "paper-cooled", "fast", "fast-v1"] | None = None
    """Start from these settings: digits in a minute; the paper's run on CIFAR-10, at a constant
    rate or cooled to zero; or the least computation to 70 %, by today's recipe or the one
    before."""
    resume: Path | None = None
    """Go on with this run folder from its newest whole checkpoint."""
    quiet: bool = False
    """Say nothing but errors."""
    json: bool = False
    """End with the summary as one line of JSON, as is done anyway where stdout is no terminal."""
    config: tyro.conf.OmitArgPrefixes[_Unchecked] = field(default_factory=_Unchecked)

    @classmethod
    def starting_from(cls, config: TrainConfig) -> "TrainArguments":
        """Return the defaults that the flags of a preset, or of a resumed run, change."""
        return cls(config=_Unchecked(**vars(config)))


@dataclass
class EvalArguments:
    """Validation accuracy of every head of a run's newest checkpoint."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    dataset: str | None = None
    """Where the run's images lie now. Default: where it found them."""
    device: str = "auto"
    """auto, cpu, cuda, or cuda:N."""
    quiet: bool = False
    """Say nothing but errors."""
    json: bool = False
    """End with one line of JSON, as is done anyway where stdout is no terminal."""


@dataclass
class PredictArguments:
    """What a run's newest checkpoint takes images for: class and probability of each."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """JPEG or PNG files."""
    dataset: str | None = None
    """Where the run's images lie now; refused if others lie there. Default: they are not needed."""
    device: str = "auto"
    """auto, cpu, cuda, or cuda:N."""
    json: bool = False
    """Print one line of JSON instead of a table; of an image that cannot be read, an error."""
    masks: Path | None = None
    """Folder for the PNG masks of a network that gives a class to every pixel. Default: masks/ in
    the run folder."""


@dataclass
class DoctorArguments:
    """What this machine has, what `auto` picks here and why, and what is missing."""


@dataclass
class StudyArguments:
    """Run a grid of runs with several seeds; started again, it runs only what is missing."""

    study: tyro.conf.Positional[str]
    """quickstart, table1, table2, table6, headline, after_3000, cooled, table7, gradinit, figure1,
    proposition2, alpha, warmup, boundary, sensitivity, exits, reduced-boundary,
    reduced-sensitivity, speedrun, speedrun_init, speedrun_bf16, speedrun2, speedrun2_whole,
    whitening, cooling, muon_bf16, or a TOML file."""
    seeds: tuple[int, ...] | None = None
    """Seeds of every variant, such as 42 123. Default: the study's."""
    jobs: int | None = None
    """Runs at a time; default 1, or with --ray as many as fit. More than 1 finishes sooner, but
    each run's seconds then say less."""
    ray: str | None = None
    """Run on a Ray cluster: local (start one here), auto (the one this machine is a node of), or
    HOST:PORT of its head."""
    gpus_per_run: float | None = None
    """With --ray: share of a GPU that each run has, such as 0.25. Default: none, runs on the
    CPU."""
    cpus_per_run: int | None = None
    """With --ray: CPU threads that each run has. Default: 1."""
    max_steps: int | None = None
    """Steps to train at most. Default: the study's."""
    stop_at_target: bool = False
    """End each run when its target is reached, where the study does not."""
    device: str | None = None
    """auto, cpu, cuda, or cuda:N. Default: the study's."""
    engine: Engine | None = None
    """How a step is executed. Default: the study's."""
    data_dir: Path | None = None
    """Folder of cifar10 and cifar100."""
    out: Path = Path("studies")
    """Folder in which the study's folder is made."""
    dry_run: bool = False
    """List the runs, what is done of them and what could not run here, then end."""
    status: bool = False
    """Show a table of the runs and the time left, live while any is in progress."""
    power: bool = False
    """From the spread of the finished runs: seeds that the paper's effect needs, and what today's
    can show."""
    export: Path | None = None
    """Write the results to summaries.csv and metrics.csv in this folder, then end."""
    imported: Annotated[tuple[Path, ...] | None, tyro.conf.arg(name="import")] = None
    """Add the study's runs among those that --export wrote to these folders, then end."""
    rerun: Literal["changed"] | None = None
    """changed: also run anew what has seen other data than those that are here now."""
    force: bool = False
    """With --export: write into a folder that holds something else."""

    def check(self) -> None:
        """Raise UserError on flags that would be dropped, and on those without a value."""
        if self.imported == ():
            raise UserError("--import has no value: give folders that --export wrote")
        if self.seeds == ():
            raise UserError("--seeds has no value: give at least one number, like --seeds 42 123")
        wanted = {
            "--dry-run": self.dry_run,
            "--status": self.status,
            "--power": self.power,
            "--export": self.export is not None,
            "--import": self.imported is not None,
        }
        given = [flag for flag, is_given in wanted.items() if is_given]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} exclude each other: give one at a time")
        if self.rerun is not None and given:
            raise UserError(f"--rerun runs the study, and {given[0]} does not: give one at a time")
        if self.force and self.export is None:
            raise UserError("--force goes with --export FOLDER only")
        shares = {"--gpus-per-run": self.gpus_per_run, "--cpus-per-run": self.cpus_per_run}
        for flag, value in shares.items():
            if value is not None and self.ray is None:
                raise UserError(f"{flag} goes with --ray only")


@dataclass
class ReportArguments:
    """Markdown, HTML and pictures of studies."""

    subjects: tyro.conf.Positional[tuple[str, ...]]
    """Names or TOML files of studies that have run."""
    out: Path = Path("report")
    """Folder for studies.md, .html, .json and the pictures."""
    whole_paper: bool = False
    """Also list the paper's statements that these studies do not test, and what each would cost."""
    card: str = "H200"
    """GPU whose measured steps say so."""
    studies: Path = Path("studies")
    """Folder that holds the studies' folders: --out of lion-fast study."""
