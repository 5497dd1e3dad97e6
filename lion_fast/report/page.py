"""report_studies(): studies.md, the same as one HTML page, studies.json and pictures."""

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from lion_fast.errors import UserError
from lion_fast.output import exact_json
from lion_fast.report.beyond import BEYOND
from lion_fast.report.comparisons import (
    ACCURACY,
    COST,
    SECONDS,
    STEPS,
    VariantRow,
    compare_variants,
    conclusion,
)
from lion_fast.report.costs import DEFAULT_CARD, cost_note, cost_text
from lion_fast.report.judges import Judgement
from lion_fast.report.judging import judge_all, studies_not_run
from lion_fast.report.markdown import ABSENT, table
from lion_fast.report.plots import draw_study
from lion_fast.report.results import Run, StudyResults
from lion_fast.report.statement import Statement
from lion_fast.report.tables import study_tables
from lion_fast.study.data import DataHere, num_unknown
from lion_fast.study.grid import Study
from lion_fast.study.stored import DATA

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --pale: #ccc; --rule: #555; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --paper: #191919; --pale: #444; --rule: #999; } }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
       background: var(--paper); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 0.85rem;
        margin: 1.25rem 0; overflow-wrap: normal; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--pale); vertical-align: top; }
th { border-bottom: 2px solid var(--rule); text-align: left; }
img { max-width: 100%; background: #fff; }
h3 { margin-top: 3rem; border-top: 2px solid var(--rule); padding-top: 1rem; }
@media print { body { max-width: none; margin: 0; font-size: 10pt; }
               table { display: table; } tr, img { break-inside: avoid; } }
"""
_RESOLVED = ("device", "engine", "loader", "precision", "impl")
_MACHINE = ("gpu", "driver", "cpu", "cpu_threads")
_VERSIONS = ("lion-fast", "commit", "python", "torch", "triton", "cuda", "dali")


def report_studies(
    studies: Sequence[StudyResults],
    out: Path,
    *,
    whole_paper: bool = False,
    card: str = DEFAULT_CARD,
) -> list[Path]:
    """Write `studies.md`, `.html`, `.json` and their pictures to `out`; return what was written.

    whole_paper: also list the statements of the paper that these studies say nothing of. card: the
    GPU whose measured steps say what those would cost. Raises UserError where a study has no
    finished run, where two have one name, where the card was not measured and where `out` cannot be
    written.
    """
    names = [results.study.name for results in studies]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two studies are called {twice}: give one of them another name")
    for results in studies:
        if not results.runs:
            study = results.study
            raise UserError(f"no run of {study.name} is finished: run `{study.command}` first")
    judged = judge_all(studies, whole=whole_paper, card=card)
    try:
        out.mkdir(parents=True, exist_ok=True)
        pictures = {results.study.name: draw_study(results, out) for results in studies}
        lines = list(_page(studies, judged, pictures, whole_paper=whole_paper, card=card))
        paths = [out / "studies.md", out / "studies.html", out / "studies.json"]
        text = "\n".join(lines) + "\n"
        paths[0].write_text(text, encoding="utf-8")
        paths[1].write_text(_html(text, out), encoding="utf-8")
        values = _values(studies, judged)
        paths[2].write_text(exact_json(values, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror}") from None
    drawn = [path for found in pictures.values() for path in found.values() if path]
    return [*paths, *drawn]


def _page(
    studies: Sequence[StudyResults],
    judged: Sequence[tuple[Statement, Judgement]],
    pictures: dict[str, dict[str, Path | None]],
    *,
    whole_paper: bool,
    card: str,
) -> Iterator[str]:
    yield from ("## Studies", "", "### Conclusions")
    for results in studies:
        yield from ("", f"{results.study.name}: {results.study.title}", "")
        yield from (f"- {line}" for line in conclusion(results))
    yield ""
    yield from _statements(judged, card)
    if whole_paper:
        yield from _studies_not_run(studies, card)
    for results in studies:
        yield from ("", f"### {results.study.name}: {results.study.title}", "")
        yield from _setting(results)
        for title, path in pictures[results.study.name].items():
            if path is not None:
                yield from ("", f"![{title}]({path.name})", "", f"*{title}.*")
        yield from study_tables(results)
        yield from _unfinished(results)
    untested = [(s.source, s.text, j.evidence) for s, j in judged if j.verdict == "not tested"]
    if untested:
        yield from ("", "### Statements not tested", "")
        yield from table(("source", "statement", "why"), untested, text_columns=3)
    if judged:
        yield ""
        yield "That LION-DG adds no overhead is no study's subject: bench_overhead measures it."


def _statements(judged: Sequence[tuple[Statement, Judgement]], card: str) -> Iterator[str]:
    """Yield the table of what the paper says and what was found, then the evidence."""
    told = [(s, j) for s, j in judged if j.verdict != "not tested"]
    if not told:
        return
    header = ("source", "statement", "paper", "ours", "n", "verdict", "command")
    rows = [
        (
            *(s.source, s.text, s.paper, j.figure or j.evidence, str(j.n or ABSENT)),
            *(j.verdict, f"`{j.command}`"),
        )
        for s, j in told
    ]
    beyond = ", and beyond it" if any(s in BEYOND for s, _ in told) else ""
    yield from (f"### Statements of the paper{beyond}", "", *table(header, rows, text_columns=7))
    if any(j.verdict == "not run" for _, j in told):
        yield from ("", cost_note(card))
    more = [(s.source, s.text, j.evidence) for s, j in told if j.figure not in ("", j.evidence)]
    if more:
        yield from ("", "#### Evidence", "")
        yield from table(("source", "statement", "evidence"), more, text_columns=3)


def _studies_not_run(studies: Sequence[StudyResults], card: str) -> Iterator[str]:
    """Yield a table of the named studies that are not on the page, with what they would cost."""
    rows = [
        (study.title, cost_text(missing, studies, card), f"`{study.command}`")
        for study, missing in studies_not_run(studies)
    ]
    if rows:
        yield from ("", "### Studies not on this page", "")
        yield from (
            "Runs that other studies made, perhaps to the target alone, are not counted.",
            "",
        )
        yield from table(("study", "not run", "command"), rows, text_columns=3)


def _setting(results: StudyResults) -> Iterator[str]:
    """Yield how many runs there are, how they ran, and on what."""
    study = results.study
    total = len(study.cells())
    configs = [replace(study.base, **variant) for variant in study.variants]

    def each(form: str, name: str) -> str:
        """Return every value that the variants have."""
        return ", ".join(dict.fromkeys(format(getattr(c, name), form) for c in configs))

    some = "" if all(config.stop_at_target for config in configs) else "some "
    end = f", {some}stopped at the target" if any(c.stop_at_target for c in configs) else ""
    yield (
        f"{len(results.runs)} of {total} runs are finished, {len(results.failed)} failed. Seeds"
        f" {', '.join(map(str, study.seeds))}; batch {each('d', 'batch_size')}, lr"
        f" {each('g', 'lr')}, at most {each(',', 'max_steps')} steps{end}."
    )
    machines = facts(results.runs, "environment", _MACHINE)
    ways = facts(results.runs, "resolved", _RESOLVED)
    yield from ("", *_listed("Machine", machines), *_listed("Executed with", ways))
    yield from _listed("Versions", facts(results.runs, "environment", _VERSIONS))
    yield from _listed("Data", _data(results.runs))
    if len(machines) > 1 or len(facts(results.runs, "resolved", _left_open(study))) > 1:
        yield ""
        yield (
            "**Mixed:** not all runs have the same machine and way of execution: steps can be"
            " compared, seconds cannot."
        )
    if still := [run for run in results.runs if run.stood_still]:
        first = f"{study.label(still[0].variant)} seed {still[0].config.seed}"
        yield ""
        yield (
            f"{len(still)} runs, {first} the first, stood still while they trained (Ctrl-Z, a"
            " suspended machine): their seconds to the target are left out."
        )
    jobs = max(run.summary.get("jobs", 1) for run in results.runs)
    if jobs > 1:
        yield from ("", f"Up to {jobs} runs shared the machine: their seconds are no benchmark.")


def _data(runs: Sequence[Run]) -> list[str]:
    """Return in words which data the runs saw, and whether those that are here are others."""
    here = DataHere()
    found: dict[str, None] = {}
    for run in runs:
        if told := run.summary.get(DATA):
            text = f"{run.config.dataset}, fingerprint {told[:12]}"
            if here.differ(run.config, run.summary):
                text += ", **other than what is here now**"
            found[text] = None
    if unknown := num_unknown(run.summary for run in runs):
        found["not known" if unknown == len(runs) else f"not known of {unknown} runs"] = None
    return list(found)


def _left_open(study: Study) -> list[str]:
    """Return what of a way of execution the study's variants do not set themselves."""
    told = {"precision" if name == "cpu_bf16" else name for v in study.variants for name in v}
    return [name for name in _RESOLVED if name not in told]


def facts(runs: Sequence[Run], entry: str, names: Sequence[str]) -> list[str]:
    """Return the different settings of the runs in words."""
    return list(
        dict.fromkeys(
            ", ".join(
                f"{name.replace('_', ' ')} {value}"
                for name in names
                if (value := run.summary[entry].get(name)) is not None
            )
            for run in runs
        )
    )


def _listed(title: str, found: Sequence[str]) -> Iterator[str]:
    yield from (f"- {title}: {text}" for text in found)


def _unfinished(results: StudyResults) -> Iterator[str]:
    if not (results.failed or results.missing):
        return
    yield from ("", "#### Without a result", "")
    for cell, error in results.failed:
        yield f"- failed: {cell.label} seed {cell.config.seed}: `{error.splitlines()[-1]}`"
    for cell in results.missing:
        yield f"- not run: {cell.label} seed {cell.config.seed}"


def _html(text: str, folder: Path) -> str:
    """Return the Markdown page as HTML that needs no other file."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)

    def embed(found: re.Match[str]) -> str:
        data = base64.b64encode((folder / unquote(found[1])).read_bytes()).decode("ascii")
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="([^"]+\.png)"', embed, body)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape('lion-fast studies')}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )


def _values(
    studies: Sequence[StudyResults], judged: Sequence[tuple[Statement, Judgement]]
) -> dict[str, Any]:
    return {
        "statements": [{"source": s.source, "statement": s.text, **j._asdict()} for s, j in judged],
        "studies": {results.study.name: _study_values(results) for results in studies},
    }


def _study_values(results: StudyResults) -> dict[str, Any]:
    return {
        "title": results.study.title,
        "seeds": results.study.seeds,
        "base": results.study.base.to_dict(),
        "num_finished": len(results.runs),
        "num_failed": len(results.failed),
        "num_missing": len(results.missing),
        "machines": facts(results.runs, "environment", _MACHINE),
        "executed_with": facts(results.runs, "resolved", _RESOLVED),
        "versions": facts(results.runs, "environment", _VERSIONS),
        "data": _data(results.runs),
        **{
            quantity.name: [_row_values(row) for row in compare_variants(results, quantity)]
            for quantity in (STEPS, SECONDS, ACCURACY, *([COST] if results.has_sizes else []))
        },
    }


def _row_values(row: VariantRow) -> dict[str, Any]:
    return {
        "variant": dict(row.variant),
        "by_seed": dict(row.values),
        "mean": row.sample and row.sample.mean,
        "std": row.sample and row.sample.std,
        "speedup_percent": row.speedup,
        "speedup_interval_percent": row.interval,
        "comparison": row.comparison and vars(row.comparison),
    }
