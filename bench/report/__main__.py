"""python -m report FILE... [--out DIR], run in bench/: benchmarks.md, pictures and gpu.md."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from lion_fast.errors import UserError
from report.page import report_benchmarks


@dataclass
class _Arguments:
    """Render benchmark results as Markdown and pictures."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """JSON files of pytest --benchmark-json and make gpu, from any number of machines."""
    out: Path = Path(__file__).resolve().parents[1] / "results" / "report"
    """Folder for benchmarks.md and its pictures."""
    counts: tuple[Path, ...] = ()
    """JSON files of bench_counts.py, whose table ends the page."""
    cards: tuple[Path, ...] = ()
    """Folders of results/gpu, of which gpu.md is made."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report and print its paths; return 2 on bad input."""
    parsed = tyro.cli(_Arguments, args=arguments, prog="python -m report")
    try:
        written = report_benchmarks(parsed.files, parsed.out, parsed.counts, parsed.cards)
    except UserError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
