"""Stores filled with made-up runs, so that reports are tested without training."""

from lion_fast.study.store import Store, Table

ENVIRONMENT = {"cpu": "A Processor", "cpu_threads": 2, "torch": "2.14.1", "commit": "abc"}


RESOLVED = {
    "device": "cpu",
    "engine": "eager",
    "loader": "resident",
    "precision": "fp32",
    "backbone": "modules",
    "impl": "torch",
}


def summary(config, *, steps_to_target=None, val_accuracy=0.8, **changes):
    """A run that trained to its end, or was stopped at its target."""
    stopped = config.stop_at_target and steps_to_target is not None
    return {
        "steps": steps_to_target if stopped else config.max_steps,
        "target_accuracy": config.target_accuracy,
        "window": config.window,
        "steps_to_target": steps_to_target,
        "seconds_to_target": None if steps_to_target is None else steps_to_target / 10,
        "init_seconds": 0.01,
        "setup_seconds": 1.0,
        "train_seconds": 100.0,
        "total_seconds": 102.0,
        "step_milliseconds_median": 100.0,
        "val_accuracy": val_accuracy,
        "val_accuracy_per_head": [0.2, 0.4, val_accuracy],
        "resolved": RESOLVED,
        "environment": ENVIRONMENT,
        "jobs": 1,
    } | changes


def metrics(accuracies=(None, 0.4, 0.6, 0.8)):
    rows = [[step, 1.0, accuracy] for step, accuracy in enumerate(accuracies, 1)]
    return Table(["step", "loss", "train_accuracy_windowed"], rows)


def probes(ratios, norms, main=2.0):
    """Gradient probes of a network with one auxiliary head, at every step."""
    rows = [
        [step, ratio, ratio * main, main, norm]
        for step, (ratio, norm) in enumerate(zip(ratios, norms, strict=True), 1)
    ]
    columns = ["step", "gradient_ratio", "aux_gradient_norm", "main_gradient_norm"]
    return Table([*columns, "aux_head0_weight_norm"], rows)


def fill(study, out, result):
    """Finish every cell of `study` with what `result(config)` returns.

    That is entries of the summary, perhaps with tables; a string is an error, None leaves a run
    missing.
    """
    with Store.create(study, out) as store:
        for cell, stored in store.of(study):
            entries = result(cell.config)
            if isinstance(entries, str):
                store.fail(stored.id, entries)
            elif entries is not None:
                entries = dict(entries)
                tables = {"metrics": metrics(), **entries.pop("tables", {})}
                store.finish(stored.id, summary(cell.config, **entries), tables)
