"""Read the JSON files that the benchmarks wrote, and put together what one machine measured.

Two kinds of file are known: pytest-benchmark's, with the `extra_info` and `machine_info` of
bench/conftest.py, and the counts of the test stage of bench/gpu/suite.py.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from lion_fast.errors import UserError
from support.catalogue import read_catalogue

CATALOGUE = read_catalogue()


class Ratio(NamedTuple):
    """The time of `a` over that of `b`, measured side by side, with its 95 % interval."""

    a: str
    b: str
    median: float
    low: float
    high: float
    num_rounds: int
    bound: float | None
    """The interval is meant to lie in 1 +- bound."""


@dataclass(frozen=True)
class BenchmarkRow:
    """One benchmark; times are seconds per call, or per step where a call is several steps."""

    benchmark: str
    """Stem of its file, such as `bench_heads`."""
    name: str
    """Identifies the row among all of a machine's."""
    extra: dict[str, Any]
    """The `extra_info` but for what the fields below hold."""
    median: float
    q1: float
    q3: float
    rounds: int
    median_seconds_of: dict[str, float]
    """Of every function that was timed side by side; empty for a function timed alone."""
    goals: dict[str, str]
    """What a ratio was meant to be, by `a / b`."""
    peak_memory_bytes_of: dict[str, int | None]
    ratios: tuple[Ratio, ...]

    @property
    def op(self) -> str:
        """What was timed."""
        return self.extra["op"]

    @property
    def impl(self) -> str:
        """Who did it."""
        return self.extra["impl"]

    @property
    def subject(self) -> str | None:
        """The function compared with others, whose time is the row's; None if timed alone."""
        return self.extra.get("subject")

    def is_ours(self, name: str) -> bool:
        """Whether a compared name is this project's; `dali-16` counts as `dali`."""
        about = CATALOGUE.get(self.benchmark)
        return about is not None and name.partition("-")[0] in about.ours


class SuiteOutcome(NamedTuple):
    """Outcome of the test suite on a machine."""

    tests: int
    failures: int
    errors: int
    skipped: int
    seconds: float
    failed: tuple[str, ...]


@dataclass(frozen=True, order=True)
class Machine:
    """Hardware and versions; times of different ones are not comparable as they stand."""

    is_cpu: bool
    name: str
    facts: tuple[str, ...]
    """Such as `torch 2.14.1`."""


class Origin(NamedTuple):
    """State of the sources and day of a measurement."""

    commit: str | None
    dirty: bool
    date: str
    """ISO 8601; empty where the file does not say."""


@dataclass(frozen=True)
class ResultFile:
    """A file of results."""

    path: Path
    machine: Machine
    origin: Origin
    time: str
    """ISO 8601 of its writing; empty where the file does not say."""
    rows: tuple[BenchmarkRow, ...]
    tests: SuiteOutcome | None


@dataclass(frozen=True)
class MachineResults:
    """All that one machine measured, every row as of its newest file."""

    machine: Machine
    rows: tuple[BenchmarkRow, ...]
    origins: dict[Origin, list[str]]
    """Benchmarks by origin."""
    tests: SuiteOutcome | None
    superseded: tuple[str, ...]
    """Names of files of which a newer file replaced rows."""


class _Malformed(Exception):
    """A value of the JSON is missing or of the wrong type."""


def _field(holder: Any, key: str, kind: type | tuple[type, ...]) -> Any:
    value = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _Malformed(f"{key} is {json.dumps(value)[:60]}")
    return value


_NUMBER = (int, float)
_OPTIONAL_TEXT = (str, type(None))


def read_results(path: Path) -> ResultFile:
    """Read a file; raise UserError where it is unreadable or not one of the two kinds."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}): give files of --benchmark-json") from None
    try:
        return _parse(path, content)
    except _Malformed as error:
        raise UserError(
            f"{path}: {error}: not a result of this project's benchmarks, "
            "which `pytest bench --benchmark-json FILE` and `make gpu` write"
        ) from None


def _parse(path: Path, content: Any) -> ResultFile:
    info = _field(content, "machine_info", dict)
    time = content.get("datetime") or ""
    counts = content.get("tests")
    tests = None if counts is None else _tests(counts)
    rows = () if tests else tuple(map(_row, _field(content, "benchmarks", list)))
    commit = _field(info, "commit", _OPTIONAL_TEXT)
    origin = Origin(commit and commit[:12], bool(info.get("dirty")), str(time)[:10])
    return ResultFile(path, _machine(info), origin, str(time), rows, tests)


def _machine(info: dict[str, Any]) -> Machine:
    device = _field(info, "device", str)
    if device not in ("cpu", "cuda"):
        raise _Malformed(f"device is {device!r}")
    is_cpu = device == "cpu"
    name = _field(info, "cpu_model", _OPTIONAL_TEXT) if is_cpu else _field(info, "gpu", str)
    hardware = ["num_threads"] if is_cpu else ["driver", "power_limit_w", "cuda", "cudnn"]
    facts = (_fact(key, info) for key in (*hardware, "torch", "triton", "dali", "python"))
    return Machine(is_cpu, name or "CPU of unknown model", tuple(facts))


_FACTS = {
    "num_threads": "threads: {}",
    "driver": "driver {}",
    "power_limit_w": "power limit {:g} W",
    "cuda": "CUDA {}",
    "cudnn": "cuDNN {}",
    "torch": "torch {}",
    "triton": "Triton {}",
    "dali": "{}",
    "python": "Python {}",
}


def _fact(key: str, info: dict[str, Any]) -> str:
    value = info.get(key)
    if value is None:
        return f"{key.replace('_', ' ')} not known"
    if key == "power_limit_w" and not isinstance(value, _NUMBER):
        raise _Malformed(f"{key} is {value!r}")
    return _FACTS[key].format(value)


def _row(entry: Any) -> BenchmarkRow:
    absent: dict[str, Any] = {
        **dict.fromkeys(("median_seconds_of", "peak_memory_bytes_of", "goals"), {}),
        "ratios": [],
    }
    extra = absent | _field(entry, "extra_info", dict)
    stats = _field(entry, "stats", dict)
    for key in ("op", "impl", "shape", "dtype", "mode"):
        _field(extra, key, str)
    name = _field(entry, "fullname", str)
    steps = extra.get("steps_per_call", 1)
    if not isinstance(steps, int) or steps < 1:
        raise _Malformed(f"steps_per_call is {steps!r}")
    seconds_of = _field(extra, "median_seconds_of", dict)
    return BenchmarkRow(
        benchmark=PurePosixPath(name.partition("::")[0]).stem,
        name=name,
        median=_field(stats, "median", _NUMBER) / steps,
        q1=_field(stats, "q1", _NUMBER) / steps,
        q3=_field(stats, "q3", _NUMBER) / steps,
        rounds=_field(stats, "rounds", int),
        median_seconds_of={who: _field(seconds_of, who, _NUMBER) / steps for who in seconds_of},
        goals=_field(extra, "goals", dict),
        peak_memory_bytes_of=_field(extra, "peak_memory_bytes_of", dict),
        ratios=tuple(map(_ratio, _field(extra, "ratios", list))),
        extra={key: value for key, value in extra.items() if key not in absent},
    )


def _ratio(entry: Any) -> Ratio:
    if _field(entry, "confidence", float) != 0.95:
        raise _Malformed(f"confidence is {entry['confidence']}")
    return Ratio(
        a=_field(entry, "a", str),
        b=_field(entry, "b", str),
        median=_field(entry, "median_ratio", _NUMBER),
        low=_field(entry, "low", _NUMBER),
        high=_field(entry, "high", _NUMBER),
        num_rounds=_field(entry, "num_rounds", int),
        bound=_field(entry, "bound", (*_NUMBER, type(None))),
    )


def _tests(counts: Any) -> SuiteOutcome:
    return SuiteOutcome(
        tests=_field(counts, "tests", int),
        failures=_field(counts, "failures", int),
        errors=_field(counts, "errors", int),
        skipped=_field(counts, "skipped", int),
        seconds=_field(counts, "seconds", _NUMBER),
        failed=tuple(map(str, _field(counts, "failed", list))),
    )


def by_machine(files: Iterable[ResultFile]) -> list[MachineResults]:
    """Merge files of equal hardware and versions; GPUs come first."""
    groups: dict[Machine, list[ResultFile]] = {}
    for file in sorted(files, key=lambda file: (file.time, str(file.path))):
        groups.setdefault(file.machine, []).append(file)
    return [_merge(groups[machine]) for machine in sorted(groups)]


def _merge(files: Sequence[ResultFile]) -> MachineResults:
    newest = {row.name: (row, file) for file in files for row in file.rows}
    origins: dict[Origin, list[str]] = {}
    for row, file in newest.values():
        benchmarks = origins.setdefault(file.origin, [])
        if row.benchmark not in benchmarks:
            benchmarks.append(row.benchmark)
    tests = [file for file in files if file.tests]
    if tests:
        origins.setdefault(tests[-1].origin, []).append("tests")
    superseded = [
        file.path.name
        for file in files
        if any(newest[row.name][1] is not file for row in file.rows)
    ]
    return MachineResults(
        files[0].machine,
        tuple(row for row, _ in newest.values()),
        origins,
        tests[-1].tests if tests else None,
        tuple(superseded + [file.path.name for file in tests[:-1]]),
    )
