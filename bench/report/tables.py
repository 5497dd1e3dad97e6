"""Tables of benchmark rows.

A table holds the rows of one op. Settings that all of its rows share stand above it; the others are
its columns. Units of what a benchmark noted follow from its name: `host_bytes`, `setup_seconds`.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from lion_fast.report.markdown import ABSENT, num_bytes, seconds, significant, table
from report.results import BenchmarkRow, Ratio

HEADERS = {
    "gb_per_second": "GB/s",
    "percent_of_copy_bandwidth": "% of copy",
    "peak_memory_bytes": "peak memory",
    "images_per_second": "images/s",
    "host_bytes": "host memory",
    "device_bytes": "device memory",
    "graph": "in a CUDA graph",
}
BOOKKEEPING = {
    *("op", "bytes_moved", "calls_per_round", "input_sets", "inputs_exceed_cache"),
    *("steps_per_call", "step_milliseconds"),
}
UNITS = {"second", "seconds", "milliseconds", "bytes", "mib", "percent"}
STATISTICS = {"mean", "standard_deviation"}
DITTO = "″"
LEGEND = f"""\
Times are per call, or per step where a call is several steps: median and interquartile range (IQR)
over rounds. A ratio is the median over rounds that ran both sides in turn, with its bootstrap 95 %
interval; **win** and **loss** are ours where the interval leaves out 1. Settings beside functions
timed in turn are the first one's; {DITTO} marks those that ran with it. A Triton kernel timed alone
is set against the fastest rival at the same setting: a win or loss there means that the quartiles
do not overlap. GB/s counts the bytes that a call must move at least; % of copy is its share of the
measured copy bandwidth. Peak memory is known on GPUs only. {ABSENT} means: does not apply, or not
recorded."""


def timed_alone(rows: Sequence[BenchmarkRow]) -> Iterator[str]:
    """Yield the table of functions that were timed one after the other."""
    if not rows:
        return
    shared, varying, measures = settings(rows)
    measures.sort(key=lambda key: key not in HEADERS)
    keys = varying or ["impl"]
    against = _against_rivals(rows)
    has_goals = any(row.goals for row in rows)
    header = [*map(_header, keys), "median", "IQR", "rounds", *map(_header, measures)]
    header += ["/ fastest rival"] * bool(against) + ["goal"] * has_goals
    lines = [
        [
            *(_cell(key, row.extra.get(key)) for key in keys),
            *(seconds(row.median, 4), _iqr(row), str(row.rounds)),
            *(_cell(key, row.extra.get(key)) for key in measures),
            *([against.get(row.name, ABSENT)] if against else []),
            *([_goals(row)] if has_goals else []),
        ]
        for group in at_equal_settings(rows)
        for row in group
    ]
    yield from (_caption(rows[0].op, {k: v for k, v in shared.items() if k not in keys}), "")
    yield from (*table(header, lines, len(keys)), "")


def _goals(row: BenchmarkRow) -> str:
    return ", ".join(f"{_header(what)} {goal}" for what, goal in row.goals.items()) or ABSENT


def side_by_side(rows: Sequence[BenchmarkRow]) -> Iterator[str]:
    """Yield the table of functions that were timed in turn: a line per ratio."""
    if not rows:
        return
    shared, keys, measures = settings(rows)
    header = ["timed", *map(_header, keys), "median", "IQR", "rounds", "against", "its median"]
    header += ["ratio", "95 % interval", "verdict"]
    has_goals = any(row.goals for row in rows)
    header += ["goal"] if has_goals else []
    has_memory = any(any(row.peak_memory_bytes_of.values()) for row in rows)
    header += ["peak memory", "its peak memory"] if has_memory else []
    measures = [key for key in measures if key != "peak_memory_bytes"]
    lines = []
    for row in rows:
        for place, (name, ratio) in enumerate(_compared(row)):
            is_subject = name == row.subject
            other = ratio.b if ratio else None
            setting = [_cell(key, row.extra.get(key)) for key in keys]
            lines.append(
                [
                    *(name, *(setting if place == 0 else [DITTO] * len(keys))),
                    *(_median(row, name), _iqr(row) if is_subject else ABSENT, str(row.rounds)),
                    *(other or ABSENT, _median(row, other), *_ratio_cells(row, ratio)),
                    *([row.goals.get(f"{name} / {other}", ABSENT)] if has_goals else []),
                    *(_memories(row, name, other) if has_memory else []),
                    *(_cell(key, row.extra.get(key) if is_subject else None) for key in measures),
                ]
            )
    yield from (_caption(f"{rows[0].op}, side by side", shared), "")
    yield from (*table(header + [*map(_header, measures)], lines, 1 + len(keys)), "")


def _compared(row: BenchmarkRow) -> Iterator[tuple[str, Ratio | None]]:
    """Yield every function with each of its ratios, the subject first.

    One that others are set against and no more is left out: its time stands beside theirs.
    """
    for name in row.median_seconds_of:
        ratios = [ratio for ratio in row.ratios if ratio.a == name]
        yield from ((name, ratio) for ratio in ratios)
        stands_beside = name != row.subject and any(ratio.b == name for ratio in row.ratios)
        if not ratios and not stands_beside:
            yield name, None


def _median(row: BenchmarkRow, name: str | None) -> str:
    time = row.median_seconds_of.get(name or "")
    return ABSENT if time is None else seconds(time, 4)


def _memories(row: BenchmarkRow, name: str, other: str | None) -> list[str]:
    mine, its = (row.peak_memory_bytes_of.get(who or "") for who in (name, other))
    shown = _cell("peak_memory_bytes", its)
    return [_cell("peak_memory_bytes", mine), "equal" if mine and mine == its else shown]


def _against_rivals(rows: Sequence[BenchmarkRow]) -> dict[str, str]:
    """Return each Triton row's time over that of the fastest rival at its setting, by name."""
    texts = {}
    for group in at_equal_settings(rows):
        rivals = [row for row in group if row.impl != "triton"]
        for row in group:
            if row.impl == "triton" and rivals:
                rival = min(rivals, key=lambda rival: rival.median)
                won, lost = row.q3 < rival.q1, row.q1 > rival.q3
                word = "**win**" if won else "**loss**" if lost else "no difference shown"
                texts[row.name] = f"{row.median / rival.median:.3f} of {rival.impl}, {word}"
    return texts


def _ratio_cells(row: BenchmarkRow, ratio: Ratio | None) -> list[str]:
    if ratio is None:
        return [ABSENT] * 3
    interval = f"{ratio.low:.3f} ... {ratio.high:.3f}" if ratio.num_rounds > 1 else ABSENT
    return [f"{ratio.median:.3f}", interval, verdict(row, ratio)]


def _caption(what: str, shared: dict[str, Any]) -> str:
    stated = ", ".join(f"{_header(key)} {_cell(key, value)}" for key, value in shared.items())
    return f"**{what}**: {stated}" if stated else f"**{what}**"


def _iqr(row: BenchmarkRow) -> str:
    return seconds(row.q3 - row.q1, 2) if row.rounds > 1 else ABSENT


def _header(key: str) -> str:
    words = [word for word in key.split("_") if word not in ("bytes", "mib")]  # the cells say it
    return HEADERS.get(key, " ".join(words))


def _cell(key: str, value: Any) -> str:
    """Return a value of `extra_info` in the unit that its name states."""
    if value is None or value in ("", {}, []):
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return _number(key, value)
    if isinstance(value, list):
        return f"[{', '.join(_cell(key, each) for each in value)}]"
    if isinstance(value, dict):
        cells = {name: _cell(key if is_measure(key) else name, v) for name, v in value.items()}
        if is_measure(key) and len(set(map(repr, value.values()))) == 1 < len(value):
            return f"equal, {next(iter(cells.values()))}"
        return " ".join(f"{name}={cell}" for name, cell in cells.items())
    return str(value)


def _number(key: str, value: float) -> str:
    words = key.split("_")
    if "percent" in words:
        return f"{value:.1f}"
    if "per_second" in key:
        return significant(value)
    if "bytes" in words:
        return num_bytes(value)
    if "milliseconds" in words:
        return seconds(value / 1e3, 4)
    if "mib" in words:
        return num_bytes(value * 2**20)
    if "seconds" in words or key in STATISTICS:
        return seconds(value, 4)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Settings(NamedTuple):
    """What was noted of rows, by key of `extra_info`."""

    shared: dict[str, Any]
    """Settings in which the rows agree."""
    varying: list[str]
    measures: list[str]
    """Numbers with a unit in their name."""


def settings(rows: Sequence[BenchmarkRow]) -> Settings:
    """Return what was noted of the rows, without what another setting or the subject tells.

    For instance `arch=densenet_ds` beside `shape=densenet_ds B128`.
    """
    noted = dict.fromkeys(key for row in rows for key in row.extra)
    keys = [
        key
        for key in noted
        if key not in BOOKKEEPING and any(_is_noted(row.extra.get(key)) for row in rows)
    ]
    measures = [key for key in keys if is_measure(key)]
    kept = [key for key in keys if key not in measures]
    for key in reversed(kept.copy()):
        if key != "subject" and any(_tells(other, key, rows) for other in kept if other != key):
            kept.remove(key)
    values = {key: [row.extra.get(key) for row in rows] for key in kept if key != "subject"}
    shared = {key: of[0] for key, of in values.items() if all(value == of[0] for value in of)}
    return Settings(shared, [key for key in values if key not in shared], measures)


def is_measure(key: str) -> bool:
    """Whether a key of `extra_info` names a unit, or is a statistic of the row's seconds."""
    return key in STATISTICS or not UNITS.isdisjoint(key.split("_"))


def at_equal_settings(rows: Iterable[BenchmarkRow]) -> list[list[BenchmarkRow]]:
    """Group rows that differ in `impl`, in measures and in how calls were issued alone."""
    groups: dict[str, list[BenchmarkRow]] = {}
    for row in rows:
        setting = {
            key: value
            for key, value in row.extra.items()
            if key not in ("impl", "graph", *BOOKKEEPING) and not is_measure(key)
        }
        groups.setdefault(repr(sorted(setting.items())), []).append(row)
    return list(groups.values())


def _is_noted(value: Any) -> bool:
    return value is not False and value not in (None, "", {}, [])


def _tells(whole: str, part: str, rows: Sequence[BenchmarkRow]) -> bool:
    """Whether in every row the text of `whole` contains the value of `part` as a word."""
    return all(
        isinstance(text := row.extra.get(whole), str)
        and re.search(rf"(?<!\w){re.escape(str(row.extra[part]))}(?!\w)", text)
        for row in rows
        if _is_noted(row.extra.get(part))
    )


def verdict(row: BenchmarkRow, ratio: Ratio) -> str:
    """Say in words what the interval shows, from our side where one of the two is ours."""
    if ratio.num_rounds < 2 or math.isinf(ratio.high):
        return "too few rounds to tell"
    if ratio.low <= 1 <= ratio.high:
        text = "no difference shown"
    elif row.is_ours(ratio.a) != row.is_ours(ratio.b):
        won = (ratio.high < 1) == row.is_ours(ratio.a)
        who = ratio.a if row.is_ours(ratio.a) else ratio.b
        text = f"**{'win' if won else 'loss'}** for {who}"
    else:
        text = f"{ratio.a} is {'faster' if ratio.high < 1 else 'slower'}"
    return text if ratio.bound is None else f"{text}, {_place(ratio, ratio.bound)}"


def _place(ratio: Ratio, bound: float) -> str:
    percent = f"±{100 * bound:g} %"
    if 1 - bound <= ratio.low and ratio.high <= 1 + bound:
        return f"inside {percent}"
    if ratio.high < 1 - bound or ratio.low > 1 + bound:
        return f"outside {percent}"
    return f"not settled at {percent}"
