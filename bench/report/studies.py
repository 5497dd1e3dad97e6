"""One page of every committed study: `python bench/report/studies.py [--out DIR]`.

Each folder of `results/studies` that is named as a built-in study and holds what `lion-fast study
NAME --export` wrote is read back, together with the flags that its runs had, and all of them go
into one report with every statement of the paper. Nothing is trained; the stores that the report
needs are made in a temporary folder.

    lion-fast study NAME [flags] --out FOLDER --export bench/results/studies/NAME
    xz -9e bench/results/studies/NAME/metrics.csv
    make studies-report
"""

import argparse
import csv
import tempfile
from pathlib import Path

from lion_fast.report.page import report_studies
from lion_fast.report.results import StudyResults, read_study
from lion_fast.study.export import NAMES, open_table
from lion_fast.study.grid import Study
from lion_fast.study.importing import import_csv
from lion_fast.study.studies import STUDIES

RESULTS = Path(__file__).resolve().parents[1] / "results" / "studies"


def exported(folder: Path) -> dict[str, Path]:
    """Return the folders of `folder` that hold a built-in study's export, in the studies' order."""
    return {name: folder / name for name in STUDIES if (folder / name / NAMES[0]).exists()}


def as_run(study: Study, export: Path) -> Study:
    """Return `study` with the flags and further seeds of its exported runs, known by their keys.

    Raises SystemExit where no engine and end make all of them the study's.
    """
    with open_table(export / NAMES[0]) as file:
        rows = list(csv.DictReader(file))
    seeds = tuple(dict.fromkeys([*study.seeds, *(int(row["seed"]) for row in rows)]))
    keys = {row["key"] for row in rows}
    engines = {None, *(row["engine"] or None for row in rows)}
    for engine in sorted(engines, key=str):
        for stop in (None, True):
            told = study.override(seeds=seeds, engine=engine, stop_at_target=stop)
            if keys <= {cell.key for cell in told.cells()}:
                return told
    raise SystemExit(
        f"{export}: runs that no --engine and --stop-at-target make {study.name}'s: export them"
        " with this version of lion-fast"
    )


def read_exports(exports: dict[str, Path], stores: Path) -> list[StudyResults]:
    """Return what each export holds of its study; each gets a store of its own in `stores`."""
    found = []
    for name, export in exports.items():
        study = as_run(STUDIES[name], export)
        import_csv(study, stores / name, [export])
        found.append(read_study(study, stores / name))
    return found


def main() -> None:
    """Write the page and its pictures, and print their paths."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the exports")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as stores:
        studies = read_exports(exported(options.results), Path(stores))
        for path in report_studies(studies, options.out, whole_paper=True):
            print(path)


if __name__ == "__main__":
    main()
