"""The table of what a step was counted to launch and move, from JSON of bench/bench_counts.py."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from lion_fast.errors import UserError
from lion_fast.report.markdown import table

HEADER = (
    *("network", "card", "precision", "engine", "launches", "ours", "Inductor", "PyTorch"),
    *("cuDNN, cuBLAS", "copies, fills", "host calls", "syncs", "MB", "peak MB"),
)
LEGEND = """\
Counted on a stand-in for a GPU that computes nothing: no time is known. A call of cuDNN or cuBLAS
is one launch, whatever it launches inside. Bytes of loop and eager sum up ATen calls, those of
compiled code kernels: compare within either. Host calls of a graph are those of a replay."""


def counts_section(paths: Sequence[Path]) -> Iterator[str]:
    """Yield the section's lines; raise UserError where a file is not what bench_counts.py wrote."""
    rows: list[list[str]] = []
    versions = set()
    for path in sorted(paths):
        try:
            for found in json.loads(path.read_text(encoding="utf-8"))["counts"]:
                versions.add(f"torch {found['torch']}, Triton {found['triton']}")
                where = [found["arch"], found["card"], found["precision"]]
                rows += [[*where, *_row(name, row)] for name, row in found["engines"].items()]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not counts of bench/bench_counts.py: {error!r}") from None
    if rows:
        rows.sort(key=lambda row: row[0])
        yield from ("### Launches and bytes of a step, counted", "", *LEGEND.splitlines(), "")
        yield from (f"Batch 128, {'; '.join(sorted(versions))}.", "", *table(HEADER, rows, 4), "")


def _row(engine: str, row: dict) -> list[str]:
    launches = row["launches"]
    kinds = [launches[kind] for kind in ("ours", "inductor", "pytorch", "cudnn_cublas")]
    others = launches["copy"] + launches["fill"]
    numbers = [sum(kinds) + others, *kinds, others, row["host_calls"], row["syncs"]]
    megabytes = [f"{sum(row['bytes'].values()) / 1e6:,.0f}", f"{row['peak_bytes'] / 1e6:,.0f}"]
    return [engine, *map(str, numbers), *megabytes]
