"""What a run remembers of its data, to be evaluated without them and to notice other data."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self
from unicodedata import normalize

from lion_fast.data.fingerprint import comparable


@dataclass(frozen=True)
class DataFacts:
    """A set of images without its images."""

    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    """Per channel, in units of full scale: what the run's images are normalised with."""
    std: tuple[float, float, float]
    image_size: tuple[int, int]
    """Height and width in pixels."""
    num_train: int
    num_test: int
    train_fingerprint: str
    """Of pixels and labels, or, for a folder, of file names, labels and content."""
    test_fingerprint: str

    @property
    def fingerprint(self) -> str:
        """Of both splits."""
        return f"{self.train_fingerprint}-{self.test_fingerprint}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Rebuild from `to_dict`, whether or not JSON turned its tuples into lists."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**fields)

    def differences(self, other: "DataFacts") -> list[str]:
        """Return in words what `other` has otherwise; empty if it is the same data.

        Mean and standard deviation follow from the images, and depend a little on whether a folder
        is read whole, so they are not compared; nor are fingerprints made in two ways, by an
        earlier version and this one.
        """
        words = _class_differences(self.class_names, other.class_names)
        if self.image_size != other.image_size:
            words.append(f"images are {_size(other.image_size)} and were {_size(self.image_size)}")
        explained = bool(words)
        splits = {
            "training": [(facts.num_train, facts.train_fingerprint) for facts in (self, other)],
            "test": [(facts.num_test, facts.test_fingerprint) for facts in (self, other)],
        }
        for split, ((num_before, before), (num_after, after)) in splits.items():
            # Equal fingerprints with other counts: unreadable files are counted by one reader only.
            if before != after and num_before != num_after:
                words.append(f"{num_after:,} {split} images, and there were {num_before:,}")
            elif before != after and comparable(before, after) and not explained:
                words.append(f"other {split} images or labels, as many as before")
        return words


def _class_differences(before: tuple[str, ...], after: tuple[str, ...]) -> list[str]:
    before, after = (tuple(normalize("NFC", name) for name in names) for names in (before, after))
    gone = [name for name in before if name not in after]
    new = [name for name in after if name not in before]
    if len(gone) == len(new) == 1:
        return [f"class {gone[0]!r} is now {new[0]!r}"]
    words = []
    if gone:
        words.append(f"classes that are gone: {', '.join(gone)}")
    if new:
        words.append(f"classes that are new: {', '.join(new)}")
    if before != after and not words:
        words.append("the classes stand in another order")
    return words


def _size(image_size: tuple[int, int]) -> str:
    return f"{image_size[0]}x{image_size[1]}"
