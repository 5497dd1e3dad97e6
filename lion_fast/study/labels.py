"""Names of variants for people, and the key that programs know them by."""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

Variant = Mapping[str, Any]
"""Config fields and their values: what tells one row of a study's table from another."""

VariantKey = frozenset[tuple[str, Hashable]]
"""What values are joined by: equal where the variants are, whatever they are called."""


def variant_key(variant: Variant) -> VariantKey:
    """Return what variants that differ never have in common."""
    return frozenset(variant.items())


def distinct_labels(variants: Sequence[Variant]) -> list[str]:
    """Return a label for each of `variants`, all different from one another.

    Names stand bare and numbers with their field, `cifar10 lion_dg aux_weight=0.1`, and a data set
    is called by the end of its path. Labels that would read the same are lengthened until they
    differ: by more of the path, by every field's name, and at last by every value as Python writes
    it.
    """
    depth = max((len(Path(str(v.get("dataset", ""))).parts) for v in variants), default=0)
    forms: list[Callable[[Variant], str]] = [
        partial(_words, dataset=lambda path: path.stem),
        *(partial(_words, dataset=partial(_end_of, num_parts=num)) for num in range(1, depth + 1)),
        lambda variant: " ".join(f"{name}={value}" for name, value in variant.items()),
        lambda variant: " ".join(f"{name}={value!a}" for name, value in variant.items()),
    ]
    lengths = [0] * len(variants)
    while True:
        labels = [forms[n](variant) or "base" for n, variant in zip(lengths, variants, strict=True)]
        alike = defaultdict(list)
        for place, label in enumerate(labels):
            alike[_as_read(label)].append(place)
        short = [
            place
            for places in alike.values()
            if len({variant_key(variants[place]) for place in places}) > 1
            for place in places
            if lengths[place] + 1 < len(forms)
        ]
        if not short:
            return labels
        for place in short:
            lengths[place] += 1


def _words(variant: Variant, dataset: Callable[[Path], str]) -> str:
    words = (
        dataset(Path(value))
        if name == "dataset"
        else value
        if isinstance(value, str)
        else f"{name}={value}"
        for name, value in variant.items()
    )
    return " ".join(" ".join(words).split())


def _end_of(path: Path, num_parts: int) -> str:
    return str(Path(*path.parts[-num_parts:]))


def _as_read(label: str) -> str:
    """Return what two labels have in common that look alike, in whatever Unicode spelling."""
    return " ".join(unicodedata.normalize("NFC", label).split())
