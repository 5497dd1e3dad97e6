"""The tables of a study's report: each of the paper's figures beside ours."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from lion_fast.report.by_seed import by_seed_tables
from lion_fast.report.comparisons import (
    ACCURACY,
    COST,
    SECONDS,
    STEPS,
    VariantRow,
    compare_variants,
)
from lion_fast.report.growth import EARLY_STEPS, growth_fits, line_table, shows_lines
from lion_fast.report.markdown import ABSENT, significant, table
from lion_fast.report.paper import (
    NUM_STEPS,
    published_accuracy,
    published_accuracy_by_seed,
    published_speedup,
    published_steps,
    rates_in_words,
)
from lion_fast.report.power import POWER
from lion_fast.report.results import Run, StudyResults
from lion_fast.report.stats import Sample, describe, describe_whole
from lion_fast.study.labels import VariantKey, variant_key

_POWER_NOTE = (
    "Shown at this n: the smallest true difference that Welch's test of so many seeds finds with"
    f" {100 * POWER:.0f} % power, if runs spread as these do; the spread of few seeds is itself"
    " uncertain."
)


def study_tables(results: StudyResults) -> Iterator[str]:
    """Yield the Markdown lines of every table that the study's runs can fill."""
    steps = [row for row in compare_variants(results, STEPS) if row.can_reach]
    if steps:
        yield from _steps_tables(results, steps)
    if results.has_sizes:
        yield from _cost_tables(results)
    has_masks = any(run.summary.get("val_iou_per_class") for run in results.runs)
    what = "mIoU" if has_masks else "accuracy"
    yield from ("", f"#### Validation {what}", "", _accuracy_note(results), "")
    accuracy = compare_variants(results, ACCURACY)
    yield from _accuracy(accuracy, what)
    yield from ("", f"#### Validation {what} seed by seed (%)", "")
    yield from _by_seed(results, accuracy, "{:.2f}", _beside_accuracy)
    yield from ("", f"#### {what[0].upper()}{what[1:]} of each head as an early exit (%)", "")
    yield from _exits(results)
    if has_masks:
        yield from ("", "#### IoU of each class of the main head (%)", "")
        yield from _classes(results)
    yield from ("", "#### Time", "")
    yield from ("Seconds are a benchmark only where nothing else ran on the machine.", "")
    yield from _times(results)
    if any(len(run.probes.get("step", ())) for run in results.runs):
        yield from ("", "#### Gradient awakening", "")
        yield from _awakening(results)
    if shows_lines(results):
        yield from ("", "#### Growth of zeroed heads", "")
        yield from line_table(results)


def _steps_tables(results: StudyResults, rows: Sequence[VariantRow]) -> Iterator[str]:
    targets = {row.config.target_accuracy for row in rows}
    target = f"{100 * targets.pop():g} %" if len(targets) == 1 else "the target"
    yield from ("", f"#### Steps to {target} training accuracy", "")
    yield from _steps(rows)
    yield from by_seed_tables(results.study.seeds, rows)
    yield from ("", "#### Steps seed by seed", "")
    yield "In brackets: speedup over the baseline of the same seed."
    yield ""
    yield from _by_seed(results, rows, "{:,.0f}", _beside_steps)
    if len(results.groups) > 1 and any(row.num_reached for row in rows):
        yield from ("", "#### Steps side by side", "")
        yield from _side_by_side(results, rows)


def _steps(rows: Sequence[VariantRow]) -> list[str]:
    header = ("run", "reached", "steps", "speedup %", "95 % interval", "paper %", "ours - paper")
    lines = []
    for row in rows:
        paper = published_speedup(row.config)
        lines.append(
            (
                row.label,
                f"{row.num_reached} of {len(row.values)}",
                _mean(row.sample, "{:,.0f}"),
                _number(row.speedup, "{:+.1f}"),
                _interval(row.interval),
                _number(paper, "{:+.1f}"),
                _gap(row.speedup, paper, "{:+.1f}"),
            )
        )
    return [*_filled(header, lines), "", *_tests(rows, "{:+,.0f}"), *_published_steps(rows)]


def _cost_tables(results: StudyResults) -> Iterator[str]:
    """Yield steps, seconds and cost side by side, and the tests of the cost."""
    yield from ("", "#### Computation to the target", "")
    yield "Cost is in steps at full size: one on smaller images counts as the square of its side"
    yield "over the full one."
    yield ""
    rows = [row for row in compare_variants(results, COST) if row.can_reach]
    steps, seconds = (
        {row.key: row.sample for row in compare_variants(results, quantity)}
        for quantity in (STEPS, SECONDS)
    )
    header = ("run", "steps", "seconds", "cost", "less cost %", "95 % interval")
    lines = [
        (
            row.label,
            _mean(steps[row.key], "{:,.0f}"),
            _mean(seconds[row.key], "{:,.2f}"),
            _mean(row.sample, "{:,.1f}"),
            _number(row.speedup, "{:+.1f}"),
            _interval(row.interval),
        )
        for row in rows
    ]
    yield from (*_filled(header, lines), "", *_tests(rows, "{:+,.1f}"))
    yield from ("", "#### Cost seed by seed", "")
    yield from _by_seed(results, rows, "{:,.1f}", lambda row, seed: [])


def _tests(rows: Sequence[VariantRow], form: str) -> list[str]:
    """Return the table of tests against the baseline."""
    header = (
        *("run against its baseline", "verdict", "difference", "p (Welch)", "p (Holm)", "d"),
        *("shown at this n", "the paper's", "n for the paper's"),
    )
    lines = []
    for row in rows:
        test = row.comparison
        if test is not None:
            effect = ABSENT if test.d is None else f"{test.d:+.2f} ({test.effect})"
            lines.append(
                (
                    row.label,
                    test.verdict,
                    _number(test.difference, form),
                    _number(test.p_value, "{:.3f}"),
                    _number(test.p_corrected, "{:.3f}"),
                    effect,
                    _number(row.smallest_shown, form.replace("+", "")),
                    _number(row.effect, form),
                    _number(row.seeds_for_effect, "{:,}"),
                )
            )
    if not lines:
        return ["No baseline has run: no test."]
    return [*_filled(header, lines, text_columns=2), "", _POWER_NOTE]


def _published_steps(rows: Sequence[VariantRow]) -> Iterator[str]:
    """Yield the paper's Table 7 beside ours, where the study has its methods."""
    lines = [
        (
            row.label,
            _mean(row.sample, "{:,.0f}"),
            f"{paper.mean:,.0f} ± {paper.population_std:,.0f}",
            _gap(_mean_value(row.sample), paper.mean, "{:+,.0f}"),
        )
        for row in rows
        if (values := published_steps(row.config)) is not None
        for paper in [describe(list(values.values()))]
    ]
    if lines:
        yield ""
        yield from table(("run", "steps", "paper's steps (its Table 7)", "ours - paper"), lines)


def _accuracy_note(results: StudyResults) -> str:
    if results.study.base.stop_at_target:
        return (
            "The runs end when they reach their target: this is the accuracy of that moment, and is"
            f" not compared with the paper's, which is after {NUM_STEPS:,} steps."
        )
    configs = [replace(results.study.base, **variant) for variant in results.study.variants]
    rates = " and of ".join(dict.fromkeys(map(rates_in_words, configs)))
    return (
        f"After the last step, of {rates}. The paper does not tell its schedule: preset paper's"
        " constant rate is for the time to the target, paper-cooled for final accuracies. ± is the"
        " sample deviation, the paper's the population deviation."
    )


def _accuracy(rows: Sequence[VariantRow], what: str) -> list[str]:
    lines = []
    for row in rows:
        paper = published_accuracy(row.config)
        lines.append(
            (
                row.label,
                str(len(row.values)),
                _mean(row.sample, "{:.2f}"),
                ABSENT if paper is None else f"{paper.value:.2f} ± {paper.std:.2f}",
                _gap(_mean_value(row.sample), paper and paper.value, "{:+.2f}"),
            )
        )
    header = ("run", "n", f"{what} %", "paper %", "ours - paper")
    return [*_filled(header, lines), "", *_tests(rows, "{:+.2f}")]


def _by_seed(
    results: StudyResults,
    rows: Sequence[VariantRow],
    form: str,
    beside: Callable[[VariantRow, int], list[str]],
) -> list[str]:
    """Return each run's value, with what `beside` says of it in brackets."""

    def cell(row: VariantRow, seed: int) -> str:
        if seed not in row.values:
            return "not run"
        value, notes = row.values[seed], beside(row, seed)
        text = "not reached" if value is None else form.format(value)
        return f"{text} ({', '.join(notes)})" if notes else text

    seeds = results.study.seeds
    lines = [(row.label, *(cell(row, seed) for seed in seeds)) for row in rows]
    return table(("run", *(f"seed {seed}" for seed in seeds)), lines)


def _side_by_side(results: StudyResults, rows: Sequence[VariantRow]) -> list[str]:
    """Return a row per setting, a column per method, and how far each spreads over the settings."""
    by_key = {row.key: row for row in rows}
    means: dict[VariantKey, list[float]] = {method: [] for method in results.methods}
    lines = []
    for setting, variants in results.groups.items():
        cells = dict.fromkeys(results.methods, ABSENT)
        for variant in variants:
            row, method = by_key.get(variant_key(variant)), results.method_of(variant)
            if row is not None and row.sample is not None:
                means[method].append(row.sample.mean)
                speedup = "" if row.speedup is None else f" ({row.speedup:+.1f} %)"
                cells[method] = f"{row.sample.mean:,.0f}{speedup}"
        lines.append((setting, *cells.values()))
    spreads = [
        f"{100 * (max(m) - min(m)) / describe(m).mean:.1f} %" if len(m) > 1 else ABSENT
        for m in means.values()
    ]
    header = ("setting", *results.methods.values())
    return table(header, [*lines, ("(largest - smallest) / mean", *spreads)])


def _beside_steps(row: VariantRow, seed: int) -> list[str]:
    speedup, paper = row.speedups.get(seed), published_steps(row.config)
    notes = [] if speedup is None else [f"{speedup:+.1f} %"]
    return notes + ([f"paper {paper[seed]:,}"] if paper and seed in paper else [])


def _beside_accuracy(row: VariantRow, seed: int) -> list[str]:
    paper = published_accuracy_by_seed(row.config)
    return [f"paper {paper[seed]:.2f}"] if paper and seed in paper else []


def _exits(results: StudyResults) -> list[str]:
    lines = []
    for variant in results.study.variants:
        runs = results.of(variant)
        if not runs:
            continue
        heads = zip(*(run.summary["val_accuracy_per_head"] for run in runs), strict=True)
        cells = [_mean(describe([100 * value for value in head]), "{:.2f}") for head in heads]
        lines.append((results.study.label(variant), str(len(runs)), *cells))
    num_aux = max(len(line) for line in lines) - 3
    # A network with fewer auxiliary heads leaves the later of their columns empty.
    lines = [(*line[:-1], *[ABSENT] * (num_aux + 3 - len(line)), line[-1]) for line in lines]
    header = ("run", "n", *(f"head {index} (aux)" for index in range(num_aux)), "main head")
    return table(header, lines)


def _classes(results: StudyResults) -> list[str]:
    """Return the mean IoU of each class; of a class that no test image shows, nothing."""
    lines = []
    for variant in results.study.variants:
        every = [run.summary.get("val_iou_per_class") for run in results.of(variant)]
        told = [iou for iou in every if iou]
        if told:
            cells = [
                ABSENT if None in of_class else f"{100 * sum(of_class) / len(told):.2f}"
                for of_class in zip(*told, strict=True)
            ]
            lines.append((results.study.label(variant), str(len(told)), *cells))
    width = max(map(len, lines))
    lines = [(*line, *[ABSENT] * (width - len(line))) for line in lines]
    return table(("run", "n", *(f"class {k}" for k in range(width - 2))), lines)


def _times(results: StudyResults) -> list[str]:
    parts: tuple[tuple[str, str, str], ...] = (
        ("seconds to target", "seconds_to_target", "{:,.1f}"),
        ("ms per step (median)", "step_milliseconds_median", "{:,.1f}"),
        ("init s", "init_seconds", "{:.2f}"),
        ("set-up s", "setup_seconds", "{:.1f}"),
        ("training s", "train_seconds", "{:,.1f}"),
    )
    speedups = {row.key: row.speedup for row in compare_variants(results, SECONDS)}
    lines = []
    for variant in results.study.variants:
        runs = results.of(variant)
        if runs:
            cells = [
                _mean(describe_whole(list(results.values(variant, key).values())), form)
                for _, key, form in parts
            ]
            label = results.study.label(variant)
            speedup = _number(speedups[variant_key(variant)], "{:+.1f}")
            lines.append((label, cells[0], speedup, *cells[1:], _init_in_steps(runs)))
    names = [name for name, *_ in parts]
    return _filled(("run", names[0], "less time %", *names[1:], "init in steps"), lines)


def _init_in_steps(runs: Sequence[Run]) -> str:
    """Return what initialisation took, in median steps: the price of a data-driven method."""
    prices = [
        1000 * run.summary["init_seconds"] / milliseconds
        for run in runs
        if (milliseconds := run.summary["step_milliseconds_median"])
    ]
    return f"{describe(prices).mean:,.1f}" if prices else ABSENT


def _awakening(results: StudyResults) -> list[str]:
    """Return gradient ratios, and the fitted growth of head weights where every step was probed."""
    marks, fitted = (1, 10, 50, EARLY_STEPS), (EARLY_STEPS // 10, EARLY_STEPS)
    header = (
        "run",
        "seed",
        *(f"ratio at step {mark}" for mark in marks),
        "last ratio (step)",
        *(f"head norm's slope per step, R² ({num} steps)" for num in fitted),
    )
    lines = []
    for run in results.runs:
        steps, ratios = run.probes.get("step", ()), run.probes.get("gradient_ratio", ())
        if not len(steps):
            continue
        by_step = dict(zip(map(int, steps), map(float, ratios), strict=True))
        is_dense = run.config.gradient_ratio_every == 1
        fits = [growth_fits(run, num).values() if is_dense else () for num in fitted]
        lines.append(
            (
                results.study.label(run.variant),
                str(run.config.seed),
                *(significant(by_step[m]) if m in by_step else ABSENT for m in marks),
                f"{significant(by_step[max(by_step)])} ({max(by_step):,})",
                *(
                    "; ".join(f"{significant(f.slope)}, {f.r_squared:.3f}" for f in of) or ABSENT
                    for of in fits
                ),
            )
        )
    return _filled(header, lines)


def _filled(
    header: Sequence[str], lines: Sequence[Sequence[str]], text_columns: int = 1
) -> list[str]:
    """Return a table without the columns that no row fills."""
    columns = [c for c in zip(header, *lines, strict=True) if {*c[1:]} != {ABSENT}]
    kept_header, *kept_lines = zip(*columns, strict=True)
    return table(kept_header, kept_lines, text_columns)


def _mean_value(sample: Sample | None) -> float | None:
    return None if sample is None else sample.mean


def _mean(sample: Sample | None, form: str) -> str:
    if sample is None:
        return ABSENT
    std = "" if sample.std is None else f" ± {form.format(sample.std)}"
    return form.format(sample.mean) + std


def _number(value: float | None, form: str) -> str:
    return ABSENT if value is None else form.format(value)


def _interval(interval: tuple[float, float] | None) -> str:
    return ABSENT if interval is None else f"{interval[0]:+.1f} to {interval[1]:+.1f}"


def _gap(ours: float | None, papers: float | None, form: str) -> str:
    return ABSENT if ours is None or papers is None else form.format(ours - papers)
