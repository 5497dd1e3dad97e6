"""Named configs: the paper's, one that is soon done, and the fast ones."""

from dataclasses import replace

from lion_fast.config import TrainConfig

_FAST_V1 = TrainConfig(
    dataset="cifar10",
    init="he",
    aux_weight=0.1,
    optimizer="muon",
    weight_decay=0.0,
    muon_lr=0.04,
    schedule="linear",
    lr_cooldown_steps=600,
    lr_floor=0.1,
    cpu_bf16=True,
    stop_at_target=True,
    checkpoint_every=0,
)

PRESETS: dict[str, TrainConfig] = {
    "paper": TrainConfig(dataset="cifar10"),
    # For final accuracies; the paper tells no schedule.
    "paper-cooled": TrainConfig(dataset="cifar10", schedule="linear", lr_cooldown_steps=3000),
    "quickstart": TrainConfig(
        dataset="digits",
        lr=5e-4,
        max_steps=400,
        window=20,
        target_accuracy=0.95,
        stop_at_target=True,
        log_every=20,
    ),
    "fast": replace(
        _FAST_V1, whiten=24, resolutions="16:200,24:150", muon_lr=0.06, muon_momentum=0.9
    ),
    # What fast was before, for one version, so that figures can be set side by side.
    "fast-v1": _FAST_V1,
}
