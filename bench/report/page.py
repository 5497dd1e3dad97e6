"""report_benchmarks(): benchmarks.md and pictures from JSON files, showing nothing else."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from lion_fast.errors import UserError
from lion_fast.report.markdown import seconds
from report.card_page import cards_page
from report.counts import counts_section
from report.plots import draw_all
from report.results import (
    CATALOGUE,
    MachineResults,
    Origin,
    SuiteOutcome,
    by_machine,
    read_results,
)
from report.tables import LEGEND, side_by_side, timed_alone

TITLES = {name: about.title for name, about in CATALOGUE.items() if about.is_timed}
"""Of benchmarks in order of appearance; others follow under their file's name."""


def report_benchmarks(
    paths: Sequence[Path], out: Path, counts: Sequence[Path] = (), cards: Sequence[Path] = ()
) -> list[Path]:
    """Write `benchmarks.md` and its pictures to `out`; return what was written.

    counts: files of bench/bench_counts.py. cards: folders of bench/gpu/card.py, which make a page
    of their own, `gpu.md`. Raises UserError where no result file is given, one cannot be read, or
    `out` cannot be written.
    """
    if not paths:
        raise UserError("report needs result files: give it bench/results/*.json")
    machines = by_machine(map(read_results, dict.fromkeys(paths)))
    of_cards = {out / "gpu.md": cards_page(cards)} if cards else {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        pictures = draw_all(machines, out)
        page = out / "benchmarks.md"
        lines = [*_page(machines, pictures, bool(cards)), *counts_section(counts)]
        for path, text in ({page: lines} | of_cards).items():
            path.write_text("\n".join(text) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    return [page, *of_cards, *(path for path in pictures.values() if path)]


def _page(
    machines: Sequence[MachineResults], pictures: dict[str, Path | None], has_cards: bool
) -> Iterator[str]:
    yield from ("## Benchmarks", "")
    for title, path in pictures.items():
        yield f"![{title}]({path.name})" if path else f"{title}: not measured."
        yield ""
    yield from (LEGEND, "")
    if has_cards:
        yield from ("What was found on a GPU stands in [gpu.md](gpu.md).", "")
    elif all(results.machine.is_cpu for results in machines):
        yield from ("### GPU", "", "Not measured: none of the results comes from a GPU.", "")
    for results in machines:
        yield from _machine_section(results)
    if not any(results.machine.is_cpu for results in machines):
        yield from ("### CPU", "", "Not measured: none of the results comes from a CPU.")


def _machine_section(results: MachineResults) -> Iterator[str]:
    machine = results.machine
    yield from (f"### {machine.name}", "", ", ".join(machine.facts) + ".", "")
    if results.origins:
        yield from (_origins(results.origins), "")
    if results.superseded:
        yield f"Newer results replace rows of {', '.join(results.superseded)}."
        yield ""
    benchmarks = dict.fromkeys(row.benchmark for row in results.rows)
    for benchmark in [*(b for b in TITLES if b in benchmarks), *sorted(benchmarks - TITLES.keys())]:
        yield from (f"#### {_title(benchmark)}", "")
        rows = [row for row in results.rows if row.benchmark == benchmark]
        for op in dict.fromkeys(row.op for row in rows):
            of_op = [row for row in rows if row.op == op]
            yield from timed_alone([row for row in of_op if not row.median_seconds_of])
            yield from side_by_side([row for row in of_op if row.median_seconds_of])
    if results.tests:
        yield from ("#### Tests", "", *_test_lines(results.tests), "")
    missing = [title for benchmark, title in TITLES.items() if benchmark not in benchmarks]
    if missing:
        yield from (f"Not measured on this machine: {', '.join(missing)}.", "")


def _title(benchmark: str) -> str:
    return TITLES.get(benchmark, benchmark)


def _origins(origins: dict[Origin, list[str]]) -> str:
    def state(origin: Origin) -> str:
        commit = f"commit `{origin.commit}`" if origin.commit else "an unknown commit"
        edited = " with uncommitted changes" if origin.dirty else ""
        return commit + edited + (f", {origin.date}" if origin.date else "")

    if len(origins) == 1:
        return f"Measured at {state(*origins)}."
    parts = (f"{', '.join(map(_title, names))} at {state(o)}" for o, names in origins.items())
    return f"Measured: {'; '.join(parts)}."


def _test_lines(tests: SuiteOutcome) -> Iterator[str]:
    yield (
        f"{tests.tests} tests in {seconds(tests.seconds)}; failures: {tests.failures}, "
        f"errors: {tests.errors}, skipped: {tests.skipped}."
    )
    yield from [""] if tests.failed else []
    yield from (f"- failed: `{name}`" for name in tests.failed)
