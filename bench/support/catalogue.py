"""What every benchmark file says of itself, read from its source: nothing is imported.

A file bench_*.py states `BENCHMARK`, a literal with the fields of `About`. `gpu/suite.py` makes its
stages of it and the report its titles, its order, and who is compared with whom.
"""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class About:
    """One benchmark file."""

    title: str
    """Of its part of the report."""
    order: int
    """Of its place in the report and in its stage; the lowest comes first."""
    stage: str
    """Stage of the GPU suite that runs it."""
    ours: tuple[str, ...] = ()
    """Compared names that are this project's own; all others are rivals."""
    is_timed: bool = True
    """Its rows are times of a machine; counts are the same on every one."""
    needs_data: bool = False
    """It measures convergence, which synthetic images do not show."""


def read_catalogue(folder: Path = FOLDER) -> dict[str, About]:
    """Return what the benchmark files of `folder` say, by stem, in order of appearance."""
    found = {path.stem: about(path) for path in folder.glob("bench_*.py")}
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


def about(path: Path) -> About:
    """Return the BENCHMARK of a file; raise ValueError where it states none."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="BENCHMARK")], value=value):
                fields: dict[str, Any] = ast.literal_eval(value)
                return About(**fields)
    raise ValueError(f"{path} states no BENCHMARK; see support/catalogue.py")
