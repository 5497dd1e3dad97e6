"""A study of an .npz that may change between its runs, and trainers that note which they saw."""

import numpy as np
from fake_study import FakeSummary, fake_train

from lion_fast.config import TrainConfig
from lion_fast.data.sources import data_fingerprint
from lion_fast.study.grid import Study, grid

ON_DATA = Study(
    name="lab",
    title="On lab.npz",
    base=TrainConfig(dataset="lab.npz", max_steps=8, log_every=1),
    variants=grid(init=("he", "lion_dg")),
    seeds=(1, 2),
)


class OnData(FakeSummary):
    """The summary of a run that was right as often as labels are 1."""

    def __init__(self, config, run):
        super().__init__(run, 0)
        self.noted = {"data_fingerprint": data_fingerprint(config)}
        if config.dataset.endswith(".npz"):
            self.noted["val_accuracy"] = float(np.load(config.dataset)["y_test"].mean())

    def to_dict(self):
        return super().to_dict() | self.noted


def train_on_data(config, resume, jobs):
    return OnData(config, fake_train(config, None, jobs).run)


def train_and_change_the_data(config, resume, jobs):
    """As someone who repairs labels while the second run is about to begin."""
    if config.init == "lion_dg" and config.seed == 1:
        write_data("lab.npz", ones=9)
    return train_on_data(config, resume, jobs)


def write_data(path, ones):
    """Twelve test images, of which so many are of class 1."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 9, 9, 3), np.uint8)
    labels = (np.arange(12) < ones).astype(np.int64)
    np.savez(
        path, x_train=images[:12], y_train=np.arange(12) % 2, x_test=images[12:], y_test=labels
    )
