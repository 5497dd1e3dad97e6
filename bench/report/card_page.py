"""gpu.md: the tables of what bench/gpu/card.py found on GPUs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from lion_fast.report.markdown import ABSENT, significant, table
from lion_fast.report.paired import Bounds, pair
from lion_fast.report.stats import describe, t_interval
from report.cards import Card, TimeRatio, baseline_of, read_card, runs_by_recipe, step_times

CONFIGS = {
    "hand_loop": "hand-written loop: resident batches, channels_last, autocast, fused AdamW",
    "stock": 'that loop through torch.compile(mode="reduce-overhead")',
    "plain": "plain script: DataLoader, torchvision transforms, fp32",
    "plain_max_autotune": 'plain script through torch.compile(mode="max-autotune")',
    "eager": "engine eager",
    "compile": "engine compile",
    "graph_eager": "engine graph, not compiled",
    "graph_fp32": "engine graph, fp32",
    "graph": "engine graph",
    "fewer": "engine graph, fewer launches (an option then, removed since)",
    "fused": "engine graph, fused backbone",
    "persistent": "engine graph, persistent backbone",
    "fast": "engine graph, Muon",
    "fast_fused": "engine graph, fused backbone, Muon",
    "resnet": "ResNet-DS, engine graph",
}
"""What is timed, in words; the modules run the backbone where nothing else is said."""
_RECIPES = {
    "fast": "preset fast-v1",
    "fast fused": "preset fast-v1, fused backbone",
    "fast fused beside": "preset fast, fused backbone, by turns with persistent",
    "fast persistent": "preset fast, persistent backbone",
    "fast fewer": "preset fast-v1, fewer launches (removed since)",
    "fast v2 fused": "preset fast, fused backbone",
    "paper he": "preset paper",
    "paper lion_dg": "preset paper",
    "resnet70": "ResNet-DS, ended at 70 %",
    "dense3000fused": "preset paper, fused backbone, 3,000 steps",
    "dense3000fused_cooled": "the same, its rate cooled linearly to 0",
    "resnet3000": "ResNet-DS, 3,000 steps",
}
_NUM_KERNELS = 8
LEGEND = f"""\
A ratio is the median over rounds that ran both sides in turn, with its bootstrap 95 % interval; a
mean has its sample standard deviation and, in brackets, its t interval of 95 %. n counts rounds or
seeds. Nothing is left out because it lost. {ABSENT} means: not recorded."""


def cards_page(folders: Sequence[Path]) -> list[str]:
    """Return the lines of gpu.md, the newest card first."""
    lines = ["## On a GPU", "", *LEGEND.splitlines(), ""]
    for card in map(read_card, sorted(folders, reverse=True)):
        lines += [f"### {card.title}", "", *_facts(card), ""]
        for title, section in (
            ("In one table", headline),
            ("A training step", _steps),
            ("Where a step's time goes", _profiles),
            ("Whole runs", _runs),
            ("Runs seed by seed", _ratios_by_seed),
            ("Values against fp64", _values),
            ("What did not come to an end", _unfinished),
        ):
            if rows := list(section(card)):
                lines += [f"#### {title}", "", *rows, ""]
    return lines


def _facts(card: Card) -> Iterator[str]:
    machine = card.machine
    named = {"torch": "torch", "triton": "Triton", "driver": "driver", "python": "Python"}
    facts = [f"{words} {machine[key]}" for key, words in named.items() if machine.get(key)]
    for found in card.of("sanity"):
        if "copy_gb_s" in found:
            facts.append(f"copy {found['copy_gb_s']:,.0f} GB/s")
        if "tflops" in found:
            dtype = str(found["dtype"]).removeprefix("torch.")
            facts.append(f"{dtype} product {found['tflops']:,.0f} TFLOP/s")
    yield ", ".join(facts) + f". Files: `bench/results/gpu/{card.name}/`."
    yield from ["", *card.provenance.splitlines()] if card.provenance else ()


def headline(card: Card) -> Iterator[str]:
    """Yield the few figures that README begins with, computed from the findings."""
    times = step_times(card)
    ratios: dict[str, TimeRatio] = {ratio.name: ratio for ratio in times.ratios}
    where = f"`{card.name}`"
    rows = []
    for name in ("hand_loop", "stock", "graph", "fused", "fast_fused"):
        if name in times.ms:
            ms, n = times.ms[name]
            measured = f"{significant(ms, 4)} ms a step"
            rows.append([CONFIGS[name], measured, f"n = {n} rounds", where])
    for name, words in (
        ("stock / fused", "torch.compile with CUDA graphs / fused backbone"),
        ("graph / fused", "modules / fused backbone"),
        ("lion_dg / he", "a step of LION-DG / of He-init"),
    ):
        if name in ratios:
            middle, interval = _interval(ratios[name].low, ratios[name].high, ratios[name].median)
            rows.append([words, f"{middle} {interval}", f"n = {ratios[name].n} rounds", where])
    runs = runs_by_recipe(card)
    for recipe in ("fast v2 fused", "fast fused", "fast", "paper he", "paper lion_dg"):
        for (name, init), found in runs.items():
            if name == recipe:
                steps, secs = (_mean([run[key] for run in found]) for key in ("steps", "seconds"))
                words = f"CIFAR-10 to 70 %, {_RECIPES[recipe]}, {init}"
                rows.append([words, f"{secs} s, {steps} steps", f"n = {len(found)} seeds", where])
    header = ("what", "measured", "n", "files in bench/results/gpu/")
    yield from table(header, rows, 2) if rows else ()


def _steps(card: Card) -> Iterator[str]:
    times = step_times(card)
    if times.ms:
        rows = [
            [CONFIGS.get(name, name), name, significant(ms, 4), str(n)]
            for name, (ms, n) in sorted(times.ms.items(), key=lambda item: -item[1][0])
        ]
        yield "DenseNet-DS, batch 128, bf16 where nothing else is said; median ms a step."
        yield from ("", *table(("what", "name", "ms", "n"), rows, 2), "")
    if times.ratios:
        rows = [[r.name, *_interval(r.low, r.high, r.median), str(r.n)] for r in times.ratios]
        yield from table(("ratio of times", "median", "95 % interval", "n"), rows)


def _profiles(card: Card) -> Iterator[str]:
    found = [each for each in card.of("profile") if "kernels" in each]
    if not found:
        return
    header = ("what", "kernels a step", "µs busy", "µs from first to last")
    yield from table(
        header,
        [
            [
                CONFIGS.get(each["config"], each["config"]),
                *(f"{each[key]:,.0f}" for key in ("launches", "busy_us", "wall_us")),
            ]
            for each in found
        ],
    )
    for each in found:
        rows = [
            [f"`{name[:60]}`", f"{count:g}", f"{us:,.1f}", f"{100 * us / each['busy_us']:.0f}"]
            for name, count, us in each["kernels"][:_NUM_KERNELS]
        ]
        yield from ("", f"{CONFIGS.get(each['config'], each['config'])}, its longest:", "")
        yield from table(("kernel", "a step", "µs", "% of busy"), rows)


def _runs(card: Card) -> Iterator[str]:
    header = (
        *("recipe", "init", "n", "steps to 70 %", "seconds to 70 %", "validation %"),
        *("ms a step", "seconds of the run", "set-up again, s"),
    )
    rows = []
    for (recipe, init), runs in runs_by_recipe(card).items():
        again = [run["setup"] for run in runs[1:]]
        rows.append(
            [
                *(_RECIPES.get(recipe, recipe), init, str(len(runs))),
                *(_mean([run[key] for run in runs]) for key in ("steps", "seconds")),
                _mean([100 * run["val"] for run in runs]),
                _mean([run["ms"] for run in runs], 4),
                _mean([run.get("train_seconds") for run in runs]),
                significant(median(again)) if again else ABSENT,
            ]
        )
    yield from table(header, rows, 2) if rows else ()


def _mean(values: Sequence[float | None], digits: int = 4) -> str:
    present = [value for value in values if value is not None]
    if len(present) < len(values) or not present:
        return ABSENT if not present else f"{len(present)} of {len(values)} runs"
    sample = describe(present)
    if sample.std is None:
        return significant(sample.mean, digits)
    low, high = t_interval(present)
    spread = significant(sample.std, 2)
    interval = f"[{significant(low, digits)}, {significant(high, digits)}]"
    return f"{significant(sample.mean, digits)} ± {spread} {interval}"


def _ratios_by_seed(card: Card) -> Iterator[str]:
    rows = []
    runs = runs_by_recipe(card)
    for (recipe, init), ours in runs.items():
        base = baseline_of(recipe, init, runs)
        if base is None:
            continue
        for quantity in ("steps", "seconds"):
            values, others = (
                {run["seed"]: run[quantity] for run in each} for each in (ours, runs[base])
            )
            if found := pair(values, others, Bounds.of_percent(5)):
                cells = _interval(*found.interval, found.ratio)
                both = [
                    f"{_RECIPES.get(name, name)}, {how}" for name, how in ((recipe, init), base)
                ]
                rows.append([*both, quantity, *cells, str(found.n)])
    header = ("runs", "over", "of", "ratio", "95 % t interval", "n")
    yield from table(header, rows, 3) if rows else ()


def _values(card: Card) -> Iterator[str]:
    rows = []
    for found in card.of("values"):
        if "error" in found:
            rows.append([found["what"], ABSENT, ABSENT, str(found["error"])[:80]])
            continue
        ours = found.get("ours_median_max") or found.get("median_max")
        other, differing = found.get("autocast_median_max"), found.get("runs_that_differ")
        of = found.get("of")
        bits = ABSENT if differing is None else f"{differing} of {of or 'its'} repeats differ"
        what = found["what"].replace("torch.", "")
        rows.append([what, _pair_of(ours), _pair_of(other), bits])
    header = ("what", "ours, median / max", "autocast's modules", "bits")
    yield from table(header, rows) if rows else ()


def _pair_of(values: Sequence[float] | None) -> str:
    return " / ".join(significant(value, 3) for value in values) if values else ABSENT


def _unfinished(card: Card) -> Iterator[str]:
    for found in card.findings:
        if found.get("code") == "out of time":
            yield f"- stage `{found.get('ends', found['stage'])}`: out of time"
        elif "left_out" in found:
            yield f"- stage `{found['left_out']}`: left out, {found.get('why', 'no time was left')}"
        elif "error" in found and found["stage"] != "values":
            what = found.get("config") or found.get("tool") or found.get("recipe") or ""
            yield f"- `{found['stage']}` {what}: {str(found['error'])[:120]}"
        elif found.get("code") not in (0, None, "0") and "ends" not in found:
            yield f"- `{found['stage']}`: exit code {found['code']}"


def _interval(low: float, high: float, middle: float) -> tuple[str, str]:
    """Return the middle and its interval with as many digits as tell them from 1."""
    digits = 5 if abs(middle - 1) < 0.01 else 4
    bounds = f"[{significant(low, digits)}, {significant(high, digits)}]"
    return significant(middle, digits), bounds
