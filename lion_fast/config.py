"""Everything a run can be told, in one flat frozen dataclass; imports nothing heavy."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from lion_fast.errors import UserError
from lion_fast.places import place
from lion_fast.resolutions import Resolutions
from lion_fast.values import LEAST, check_range, typed

Arch = Literal["densenet_ds", "resnet_ds", "unet_ds"]
Placement = Literal["side_tap", "residual"]
Init = Literal["he", "xavier", "lion_dg", "lsuv", "lion_lsuv", "fixup", "rezero", "gradinit"]
HeadBias = Literal["zero", "prior"]
Engine = Literal["auto", "eager", "compile", "graph"]
LoaderName = Literal["auto", "resident", "dali", "workers"]
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
BackboneName = Literal["auto", "fused", "persistent", "modules"]
BatchNorm = Literal["global", "local"]
OptimizerName = Literal["adamw", "muon", "sgd"]
ScheduleName = Literal["constant", "linear", "cosine"]
NumWorkers = int | Literal["auto"]
# Spelled again in kernels/dispatch.py, which must not import this package; a test holds the two
# together.
Impl = Literal["auto", "triton", "torch"]

AUTO_WORKERS = 2

Role = Literal["numbers", "execution", "housekeeping"]
_Value = TypeVar("_Value")


def _field_of(role: Role, default: _Value) -> _Value:
    # Typed as what a reader of the field gets, as `dataclasses.field` itself is.
    field: Any = dataclasses.field(default=default, metadata={"role": role})
    return field


def numbers(default: _Value) -> _Value:
    """Return a field that decides what is learned: data, network, loss, length, target.

    A resumed run keeps it, and a study's runs are told apart by it.
    """
    return _field_of("numbers", default)


def execution(default: _Value) -> _Value:
    """Return a field that decides where and how steps execute and what else is measured.

    A resumed run may be told it anew; its seconds, and the last digits of its numbers, then differ.
    """
    return _field_of("execution", default)


def housekeeping(default: _Value) -> _Value:
    """Return a field that no result depends on: where things lie, what is saved and shown.

    A resumed run may be told it anew, and nothing differs.
    """
    return _field_of("housekeeping", default)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run; defaults are the paper's (arXiv 2601.02105, A.2), lengths are in steps."""

    dataset: str = numbers("digits")
    """Image set: digits (embedded, 16x16), scenes (digits on a canvas, a class a pixel),
    scenes_foreground (without the background), cifar10, cifar100, a path to an .npz with x_train
    y_train x_test y_test, or a folder that holds train/ and test/ with one folder per class, or
    with images/ and masks/."""
    data_dir: Path | None = housekeeping(None)
    """Folder where cifar10 and cifar100 are looked for, and downloaded to when absent. Default:
    ~/.cache/lion-fast."""
    image_size: int | None = numbers(None)
    """Side in pixels to which images of a folder data set are resized. Default: the size of its
    first image."""
    skip_corrupt: bool = numbers(False)
    """Count unreadable images of a folder data set and go on, instead of stopping at the first."""

    num_classes: int | None = numbers(None)
    """Keep this many classes, the first ones. Default: all."""
    train_fraction: float = numbers(1.0)
    """Share of each class's training images to keep, the first ones; the test split stays."""

    arch: Arch = numbers("densenet_ds")
    """Network with auxiliary heads on intermediate layers; unet_ds gives a class to every pixel."""
    placement: Placement = numbers("side_tap")
    """Where resnet_ds puts its auxiliary weights: beside the residual path, or in it (Theorem 1's
    wrong design)."""
    growth_rate: int = numbers(8)
    """Channels that each layer of densenet_ds adds."""
    block_layers: int = numbers(6)
    """Layers in each of the three dense blocks of densenet_ds."""
    base_width: int = numbers(64)
    """Channels of the first stage of resnet_ds; each later stage doubles them."""
    unet_width: int = numbers(12)
    """Channels of the first stage of unet_ds; each coarser stage doubles them."""
    init: Init = numbers("lion_dg")
    """Weight initialisation; lion_dg zeroes the auxiliary heads and He-initialises the rest."""
    whiten: int = numbers(0)
    """Filters of the stem that start as the whitening of the training images' patches, whatever
    init sets; 0 is none."""

    head_bias: HeadBias = numbers("zero")
    """Biases of the auxiliary heads at first: zero, as every initialisation leaves them, or prior,
    the logarithms of the classes' shares in the training set."""

    aux_weight: float = numbers(0.3)
    """Weight alpha of every auxiliary head's loss; the main head's is 1. unet_ds halves it for each
    level beyond the finest."""
    aux_warmup_steps: int = numbers(0)
    """Ramp the auxiliary weight linearly from 0 over this many steps: the schedule that LION-DG
    makes unnecessary."""
    label_smoothing: float = numbers(0.0)
    """Cross-entropy label smoothing, from 0 up to but excluding 1."""
    dice: float = numbers(0.0)
    """Weight of the Dice loss beside unet_ds's cross-entropy."""
    optimizer: OptimizerName = numbers("adamw")
    """AdamW for every parameter; Muon (orthogonalised momentum) for the backbone's convolutions and
    matrices and AdamW for heads, norms and biases; or sgd: lr times the gradient, nothing else."""
    lr: float = numbers(5e-3)
    """Learning rate of AdamW and of sgd; the default was calibrated for AdamW, see README."""
    weight_decay: float = numbers(0.05)
    """AdamW decoupled weight decay."""
    muon_lr: float = numbers(0.02)
    """Muon learning rate: about the largest singular value of a step, for wide weights."""
    muon_momentum: float = numbers(0.95)
    """Muon's share of the gradients' old average in the new one."""
    muon_weight_decay: float = numbers(0.0)
    """Muon decoupled weight decay."""
    schedule: ScheduleName = numbers("constant")
    """Course of all learning rates: constant, or a linear warm-up and a linear or cosine
    cool-down."""
    lr_warmup_steps: int = numbers(0)
    """With schedule linear or cosine: steps in which the rates rise to their full values."""
    lr_cooldown_steps: int = numbers(0)
    """With schedule linear or cosine: steps after the warm-up in which the rates fall to lr_floor;
    0 keeps them full."""
    lr_floor: float = numbers(0.0)
    """With schedule linear or cosine: share of the rates that is left when they have cooled down.
    """
    batch_size: int = numbers(128)
    """Images per step."""
    batch_norm: BatchNorm = numbers("global")
    """Where several processes share a step: normalise over the images of all of them, as one
    process would, or over each one's own."""
    virtual_shards: int = numbers(0)
    """Process a batch as this many parts with batch statistics of their own, summed in order: the
    same bits on any number of processes that divides it. 0 is off."""
    max_steps: int = numbers(3000)
    """Steps to train at most."""
    crop_padding: int = numbers(0)
    """Pixels of zero padding for random crops; 0 turns crops off, as in the paper."""
    resolutions: str = numbers("")
    """Smaller images to begin with, as pixels:steps, such as 16:250,24:100: 250 steps at 16x16
    pixels, 100 at 24x24, then the images' own size, at which alone the target counts. Of 32 pixels
    16, 24, 28, 30 and 31 can be had. Default: none."""

    target_accuracy: float = numbers(0.70)
    """Training accuracy, as a fraction, whose first crossing is timed."""
    window: int = numbers(100)
    """Steps over which training accuracy is averaged for the target."""
    stop_at_target: bool = numbers(False)
    """End the run when the target is reached instead of at max_steps."""
    seed: int = numbers(42)
    """Seed of the weights and of the batch plan."""

    device: str = execution("auto")
    """auto, cpu, cuda, or cuda:N."""
    engine: Engine = execution("auto")
    """How a step executes: op by op, through torch.compile, or as a CUDA graph of whole steps."""
    graph_compile: bool = execution(True)
    """With engine graph: capture torch.compile'd code instead of eager code."""
    loader: LoaderName = execution("auto")
    """Who makes the batches: a device-resident set, NVIDIA DALI, or DataLoader workers."""
    precision: Precision = execution("auto")
    """Arithmetic of the forward and backward pass; weights and optimizer stay fp32."""
    cpu_bf16: bool = execution(False)
    """Let precision auto take bf16 on a CPU that has instructions for it."""
    impl: Impl = execution("auto")
    """Fused Triton kernels or the plain PyTorch reference."""
    backbone: BackboneName = execution("auto")
    """How densenet_ds trains: its modules, or one fused op whose dense blocks share batch
    statistics. auto takes the op where it was measured to be faster. fused with impl torch takes
    the op's PyTorch reference, which runs everywhere. persistent: the op in two launches, one image
    a processor; no GPU has measured it."""
    steps_per_replay: int = execution(8)
    """With engine graph: training steps captured in one CUDA graph."""
    steps_per_run: int = execution(16)
    """With loader dali: steps' worth of images that one pipeline run delivers."""
    num_workers: NumWorkers = execution(2)
    """With loader workers: DataLoader worker processes; with loader dali: CPU threads. auto is 2,
    and fewer or no processes where shared memory has no room for their batches."""

    eval_every: int = execution(0)
    """Steps between validations; 0 validates once, at the end."""
    checkpoint_every: int = housekeeping(500)
    """Steps between checkpoints; 0 writes one only at the end or on Ctrl-C."""
    log_every: int = housekeeping(50)
    """Steps between log lines."""
    gradient_ratio_every: int = execution(0)
    """Steps between probes of the auxiliary-to-main gradient ratio; 0 is off, as timed runs want
    it."""
    out: Path = housekeeping(Path("runs"))
    """Folder in which the run folder is made."""
    rendezvous_timeout: float = housekeeping(600.0)
    """Where several processes share a run: seconds to wait for all of them to start, and in a step
    for those that no longer answer."""
    tensorboard: bool = housekeeping(False)
    """Also write TensorBoard event files to the run folder."""

    def __post_init__(self) -> None:
        """Take strings as paths and whole numbers as floats; raise UserError on what is wrong."""
        for field in dataclasses.fields(self):
            value = typed(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        resolutions = Resolutions.parse(self.resolutions)
        resolutions.check_length(self.max_steps)
        object.__setattr__(self, "resolutions", str(resolutions))
        place(self.dataset)  # kept as it was typed, which tells the runs of a study apart
        for name in LEAST:
            check_range(name, getattr(self, name))
        if not 0 < self.target_accuracy <= 1:
            raise UserError(
                f"target_accuracy is {self.target_accuracy}: give a fraction in (0, 1], like 0.7"
            )
        if not 0 < self.train_fraction <= 1:
            raise UserError(f"train_fraction is {self.train_fraction}: give a fraction in (0, 1]")
        if self.label_smoothing >= 1:
            raise UserError(f"label_smoothing is {self.label_smoothing}: it must be below 1")
        for name in ("lr", "muon_lr"):
            if getattr(self, name) == 0:
                raise UserError(f"{name} is 0: give a positive learning rate")
        if self.muon_momentum >= 1:
            raise UserError(f"muon_momentum is {self.muon_momentum}: it must be below 1")
        for name in ("lr_warmup_steps", "lr_cooldown_steps", "lr_floor"):
            if self.schedule == "constant" and getattr(self, name):
                raise UserError(
                    f"{name} is of schedule linear or cosine, and schedule is constant: drop one"
                )

    @property
    def most_workers(self) -> int:
        """Worker processes or threads where nothing keeps them from running."""
        return AUTO_WORKERS if self.num_workers == "auto" else self.num_workers

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values (paths become strings)."""
        values = dataclasses.asdict(self)
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in values.items()
        }

    def check_resumable_as(self, other: "TrainConfig") -> None:
        """Raise UserError that lists what `other` would change of what a run as `self` learns.

        The data set may lie elsewhere by now: its fingerprint says whether it is the same.
        """
        before, after = self.to_dict(), other.to_dict()
        changed = [
            f"{name} {before[name]} -> {after[name]}"
            for name in before
            if before[name] != after[name] and name not in FREE_ON_RESUME
        ]
        if changed:
            raise UserError(f"a resumed run keeps its settings; differing: {', '.join(changed)}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """Rebuild from `to_dict`; raise UserError on unknown names and on wrong types.

        Fields that earlier versions had are dropped where they ask for what a run does today.
        """
        if not isinstance(values, dict):
            raise UserError(f"a config is a table of fields, not a {type(values).__name__}")
        for name in REMOVED.keys() & values.keys():
            if values[name] is not REMOVED[name]:
                raise UserError(
                    f"config field {name} is {values[name]!r}, and this version has none: set it to"
                    f" {json.dumps(REMOVED[name])} to go on without"
                )
        values = {name: value for name, value in values.items() if name not in REMOVED}
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise UserError(
                f"unknown config field {unknown[0]!r}: another version of lion-fast wrote it"
            )
        return cls(**values)


def fields_of(role: Role) -> frozenset[str]:
    """Return the names of the fields of that role."""
    fields = dataclasses.fields(TrainConfig)
    return frozenset(field.name for field in fields if field.metadata["role"] == role)


# Fields that earlier versions wrote, with the one value that means what a run does today.
REMOVED: dict[str, object] = {"fewer_launches": False}

# What a resumed run may be told anew: all but what is learned, how far to go, and where the images
# lie, which are known by their fingerprint.
FREE_ON_RESUME = fields_of("housekeeping") | fields_of("execution") | {"max_steps", "dataset"}
