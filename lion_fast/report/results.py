"""A study's runs as reports need them: values by seed, curves by step."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.study.data import finished, known_data
from lion_fast.study.grid import Cell, Study, by_recipe
from lion_fast.study.labels import Variant, VariantKey, distinct_labels, variant_key
from lion_fast.study.store import Store, Table

Curves = Mapping[str, NDArray[np.float64]]
"""A table's columns by name, all of one length; NaN where a row has no value."""


@dataclass(frozen=True)
class Run:
    """One finished run."""

    variant: Variant
    config: TrainConfig
    summary: dict[str, Any]
    """As in the run's summary.json, with the cost that runs of earlier versions do not say."""
    metrics: Curves
    validation: Curves
    probes: Curves

    @property
    def stood_still(self) -> bool:
        """Whether its process stood still while it trained, so that its seconds say less."""
        return bool(self.summary.get("stopped_seconds"))

    @property
    def head_norms(self) -> Curves:
        """Weight norm of each auxiliary head that the network has, over the probed steps."""
        return {
            name: norms
            for name, norms in self.probes.items()
            if name.endswith("_weight_norm") and not np.isnan(norms).all()
        }


@dataclass(frozen=True)
class StudyResults:
    """What a store holds of a study, whose base and seeds are those of the store."""

    study: Study
    runs: tuple[Run, ...]
    failed: tuple[tuple[Cell, str], ...]
    """Runs whose last attempt failed, each with its error."""
    missing: tuple[Cell, ...]

    def of(self, variant: Variant) -> list[Run]:
        """Return the finished runs of a variant, in the order of the seeds."""
        return [run for run in self.runs if run.variant == variant]

    def values(self, variant: Variant, name: str) -> dict[int, float | None]:
        """Return an entry of the summary by seed; None where a run has none.

        Runs that stood still have no part in seconds to the target: a None would be a run that did
        not get there.
        """
        runs = self.of(variant)
        if name == "seconds_to_target":
            runs = [run for run in runs if not run.stood_still]
        return {run.config.seed: run.summary[name] for run in runs}

    def find(self, **fields: Any) -> list[Run]:
        """Return the finished runs whose config has these values."""
        return [run for run in self.runs if has_values(run.config, fields)]

    @property
    def has_sizes(self) -> bool:
        """Whether a run began on smaller images, so that its steps are not of one cost."""
        return any(run.config.resolutions for run in self.runs)

    @cached_property
    def groups(self) -> dict[str, list[Variant]]:
        """The variants that are compared with one another, under what tells them from the rest."""
        settings: dict[VariantKey, Variant] = {}
        groups: dict[VariantKey, list[Variant]] = {}
        for variant in self.study.variants:
            config = replace(self.study.base, **variant)
            common = {k: v for k, v in variant.items() if k not in self.study.baseline}
            setting = {"dataset": config.dataset, "arch": config.arch, **common}
            key = variant_key(setting)
            settings.setdefault(key, by_recipe(setting))
            groups.setdefault(key, []).append(variant)
        shared: VariantKey = frozenset()
        if len(settings) > 1:
            shared = frozenset.intersection(*map(variant_key, settings.values()))
        titles = distinct_labels(
            [
                {name: value for name, value in setting.items() if (name, value) not in shared}
                for setting in settings.values()
            ]
        )
        return dict(zip(titles, groups.values(), strict=True))

    @cached_property
    def methods(self) -> dict[VariantKey, str]:
        """What tells variants from the others of their group, by `method_of`, in words."""
        methods = {
            self.method_of(variant): self._method(variant) for variant in self.study.variants
        }
        labels = distinct_labels([by_recipe(method) for method in methods.values()])
        return dict(zip(methods, labels, strict=True))

    def method_of(self, variant: Variant) -> VariantKey:
        """Return the key of what tells a variant from the others of its group."""
        return variant_key(self._method(variant))

    def _method(self, variant: Variant) -> Variant:
        return {k: v for k, v in variant.items() if k in self.study.baseline}

    def short_label(self, variant: Variant) -> str:
        """Return what tells a variant from the others of its group, in words."""
        return self.methods[self.method_of(variant)]


def has_values(config: TrainConfig, fields: Mapping[str, Any]) -> bool:
    """Return whether the config has these values."""
    return all(getattr(config, name) == value for name, value in fields.items())


def read_study(study: Study, out: Path) -> StudyResults:
    """Read what the store of `study` below `out` holds of it.

    Raises UserError where there is no store or it cannot be read, and where it holds runs of
    different data under one name.
    """
    folder = study.folder(out)
    if not (folder / "study.sqlite").exists():
        raise UserError(
            f"no run of {study.name} in {folder}: run `{study.command}` first, or name its"
            " --out folder"
        )
    with Store.open(study.folder(out)) as store:
        study = as_stored(study, store)
        store.check_runs_of(study)
        cells = store.of(study)
        told = [(cell.config, summary) for cell, summary in finished(cells)]
        known_data(told, store.path)
        runs = tuple(
            Run(
                cell.variant,
                cell.config,
                _with_cost(cell.config, stored.summary),
                *(_curves(store.table(n, stored.id)) for n in ("metrics", "validation", "probes")),
            )
            for cell, stored in cells
            if stored is not None and stored.summary is not None
        )
    failed = tuple((c, s.error) for c, s in cells if s and s.error and s.summary is None)
    missing = tuple(c for c, s in cells if s is None or (s.summary is None and not s.error))
    return StudyResults(study, runs, failed, missing)


def _with_cost(config: TrainConfig, summary: dict[str, Any]) -> dict[str, Any]:
    """Return a summary with its cost: the steps themselves where all are at full size."""
    if config.resolutions:
        return summary
    return summary | {"cost_to_target": summary["steps_to_target"]}


def study_as_stored(study: Study, out: Path) -> Study:
    """Return `study` as its store below `out` holds it, or as it is where there is no store."""
    folder = study.folder(out)
    if not (folder / "study.sqlite").exists():
        return study
    with Store.open(folder) as store:
        return as_stored(study, store)


def as_stored(study: Study, store: Store) -> Study:
    """Return `study` with the base and the seeds of what `store` holds of it.

    Its own seeds stand where the store holds no run of it.
    """
    keys, seeds = set(), dict[int, None]()
    for cell in store.cells():
        keys.add(cell.key)
        seeds[cell.config.seed] = None
    base = store.base()
    # A store that studies share holds seeds of the others.
    held = [
        s for s in seeds if keys & {c.key for c in replace(study, base=base, seeds=(s,)).cells()}
    ]
    return replace(study, base=base, seeds=tuple(held) or study.seeds)


def _curves(table: Table) -> Curves:
    rows = np.array(table.rows, dtype=float).reshape(-1, len(table.columns))
    return dict(zip(table.columns, rows.T, strict=True))
