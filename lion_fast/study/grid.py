"""A study: named variants of one TrainConfig times seeds, in Python or in a small TOML file."""

import difflib
import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from lion_fast.config import TrainConfig, fields_of
from lion_fast.errors import UserError
from lion_fast.places import place
from lion_fast.presets import PRESETS
from lion_fast.study.labels import Variant, VariantKey, distinct_labels, variant_key

PAPER_SEEDS = (42, 123, 456)
_FREE = fields_of("housekeeping")
_FIELDS = {field.name: field for field in fields(TrainConfig)}
_TOML_KEYS = ("name", "title", "preset", "seeds", "baseline", "base", "axes", "cells")
# What belongs to no recipe: where the network starts, and when a run ends.
_NOT_OF_A_RECIPE = {"init", "stop_at_target"}


def course(config: TrainConfig) -> dict[str, Any]:
    """Return the fields that decide a run's numbers, its seconds included, JSON-ready."""
    return {name: value for name, value in config.to_dict().items() if name not in _FREE}


def _recipes(*presets: str) -> dict[str, Variant]:
    """Return, of each preset, the fields of a recipe in which these presets differ."""
    courses = {name: course(PRESETS[name]) for name in presets}
    differing = [
        field
        for field, value in courses[presets[0]].items()
        if field not in _NOT_OF_A_RECIPE and any(c[field] != value for c in courses.values())
    ]
    return {name: {field: c[field] for field in differing} for name, c in courses.items()}


RECIPES = _recipes("paper", "fast-v1", "fast")
"""What tells the recipes of these presets apart, by the preset's name; to be part of a variant."""


def grid(**axes: Iterable[Any]) -> tuple[Variant, ...]:
    """Return the product of the axes as variants, the first axis varying slowest."""
    return tuple(
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    )


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    variant: Variant
    config: TrainConfig
    label: str = ""
    """The variant in words, other than every other's of its study."""

    @cached_property
    def key(self) -> str:
        """Hash of every field that decides the run's numbers.

        Fields at their default do not enter, so a new field changes no key.
        """
        default = course(type(self.config)())
        told = {
            name: value for name, value in course(self.config).items() if value != default[name]
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def by_recipe(variant: Variant) -> Variant:
    """Return the variant with the name of the nearest recipe in place of that one's fields.

    What differs from the recipe stays, so that variants that differ do so still.
    """
    fields = RECIPES["paper"].keys()
    if not fields <= variant.keys():
        return variant
    differing = {
        name: {field: variant[field] for field, value in recipe.items() if variant[field] != value}
        for name, recipe in RECIPES.items()
    }
    name = min(differing, key=lambda name: len(differing[name]))
    rest = {field: value for field, value in variant.items() if field not in fields}
    return {"recipe": name, **differing[name], **rest}


@dataclass(frozen=True, kw_only=True)
class Study:
    """Every variant of `base` with every seed."""

    name: str
    title: str
    base: TrainConfig
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...] = PAPER_SEEDS
    baseline: Variant = field(default_factory=lambda: {"init": "he"})
    """Fields that turn a variant into the one that it is compared with."""
    store_name: str | None = None
    """Study in whose store the runs lie, where it has some of them too: none is done twice."""
    source: Path | None = field(default=None, compare=False)
    """TOML file that it was read from."""

    def __post_init__(self) -> None:
        """Raise UserError on a bad name, an unknown field, a value that cannot be meant."""
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise UserError(
                f"study name is {self.name!r}: take letters, digits, '.', '_' and '-' only"
            )
        for variant in (*self.variants, self.baseline):
            for name in variant:
                if name == "seed" or name in _FREE:
                    raise UserError(f"study {self.name}: {name} cannot vary from cell to cell")
                _known_field(name, f"study {self.name}")
        if not self.seeds or not self.variants:
            raise UserError(f"study {self.name} has no runs: give seeds and at least one axis")
        # As the configs have them: what numpy or pathlib calls a value is no other variant.
        configs = [replace(self.base, **variant) for variant in self.variants]
        variants = tuple(
            {name: getattr(config, name) for name in variant}
            for config, variant in zip(configs, self.variants, strict=True)
        )
        object.__setattr__(self, "variants", variants)
        cells = self.cells()
        if len({cell.key for cell in cells}) < len(cells):
            raise UserError(f"study {self.name} has the same run twice: drop a cell or a seed")

    def cells(self) -> list[Cell]:
        """Return every run, all variants of the first seed first."""
        return list(self._cells)

    @cached_property
    def _cells(self) -> tuple[Cell, ...]:
        return tuple(
            Cell(variant, replace(self.base, **variant, seed=seed), self.label(variant))
            for seed in self.seeds
            for variant in self.variants
        )

    def label(self, variant: Variant) -> str:
        """Return what people call a variant of the study: `cifar10 lion_dg aux_weight=0.1`.

        A recipe goes by its name and what differs from it: `fast cpu_bf16=False lion_dg`. No two
        variants have one label, but values are joined by `variant_key`.
        """
        return self._labels[variant_key(variant)]

    @cached_property
    def _labels(self) -> dict[VariantKey, str]:
        labels = distinct_labels([by_recipe(variant) for variant in self.variants])
        return dict(zip(map(variant_key, self.variants), labels, strict=True))

    def baseline_of(self, variant: Variant) -> Variant | None:
        """Return the variant that `variant` is compared with; None where the study has none."""
        wanted = {**variant, **{k: v for k, v in self.baseline.items() if k in variant}}
        return wanted if wanted != variant and wanted in self.variants else None

    @property
    def command(self) -> str:
        """The command that runs it."""
        return f"lion-fast study {self.source or self.name}"

    def folder(self, out: Path) -> Path:
        """Return the folder of the store and of the run folders."""
        return place(out) / (self.store_name or self.name)

    def override(self, *, seeds: tuple[int, ...] | None = None, **values: Any) -> "Study":
        """Return the study with other seeds and other values of `base`; None leaves as it is.

        A field that the variants set keeps their values.
        """
        told = {name: value for name, value in values.items() if value is not None}
        return replace(self, base=replace(self.base, **told), seeds=seeds or self.seeds)


def load_study(path: Path) -> Study:
    """Read a study from TOML: preset, seeds, baseline, and the tables base, axes and [[cells]].

    `axes` maps fields to lists and spans a grid; each of `cells` adds one variant. Raises UserError
    on what is no TOML, on an unknown key or field (with a suggestion) and on a wrong type.
    """
    path = place(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read the study {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    for key in values:
        if key not in _TOML_KEYS:
            raise UserError(f"{path}: unknown key {key!r}: {suggestion(key, _TOML_KEYS)}")
    preset = values.get("preset")
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        raise UserError(f"{path}: preset is {preset!r}: {suggestion(str(preset), PRESETS)}")
    axes = _table(values, "axes", path)
    for name, points in axes.items():
        if not isinstance(points, list) or not points:
            raise UserError(f"{path}: axis {name} is {points!r}: give a list of values")
    variants = grid(**{name: [_typed(name, v, path) for v in vs] for name, vs in axes.items()})
    cells = values.get("cells", [])
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise UserError(f"{path}: cells is {cells!r}: write each as a table [[cells]]")
    seeds = values.get("seeds", list(PAPER_SEEDS))
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise UserError(f"{path}: seeds is {seeds!r}: give a list of integers")
    if "seed" in (base := _table(values, "base", path)):
        raise UserError(
            f"{path}: base has a seed, which would not run: give seeds = [...] above it"
        )
    baseline = _table(values, "baseline", path) or {"init": "he"}
    return Study(
        name=str(values.get("name", path.stem)),
        title=str(values.get("title", path.stem)),
        base=replace(
            PRESETS[preset] if preset else TrainConfig(),
            **_typed_table(base, path),
        ),
        variants=(variants if axes else ()) + tuple(_typed_table(cell, path) for cell in cells),
        seeds=tuple(seeds),
        baseline=_typed_table(baseline, path),
        source=path,
    )


def _table(values: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    table = values.get(key, {})
    if not isinstance(table, dict):
        raise UserError(f"{path}: {key} is {table!r}: write it as a table [{key}]")
    return table


def _typed_table(values: Variant, path: Path) -> dict[str, Any]:
    return {name: _typed(name, value, path) for name, value in values.items()}


def _typed(name: str, value: Any, path: Path) -> Any:
    """Return a TOML value as the type of the field `name`; raise UserError where it is another."""
    _known_field(name, str(path))
    declared: Any = _FIELDS[name].type
    choices = get_args(declared) if get_origin(declared) is Literal else ()
    if choices and isinstance(value, str) and value not in choices:
        raise UserError(f"{path}: {name} is {value!r}: take one of {', '.join(choices)}")
    types = (str,) if choices else get_args(declared) or (declared,)
    if isinstance(value, str) and any(value in get_args(kind) for kind in types):
        return value
    if Path in types and isinstance(value, str):
        return Path(value)
    if float in types and type(value) is int:
        return float(value)
    if type(value) not in types:
        words = [
            str(word) for kind in types if get_origin(kind) is Literal for word in get_args(kind)
        ]
        wanted = " or ".join([types[0].__name__, *words])
        raise UserError(f"{path}: {name} is {value!r}: it must be {wanted}")
    return value


def _known_field(name: str, where: str) -> None:
    if name not in _FIELDS:
        raise UserError(f"{where}: unknown field {name!r}: {suggestion(name, _FIELDS)}")


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return what `word` was perhaps meant to be, in words that end an error message."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"take one of {', '.join(known)}"
