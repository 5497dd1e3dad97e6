"""A persistent kernel's time by phase, calculated: its machine code walked as a warp runs it.

Between two barriers all 16 warps work; a stretch takes the norm of one warp's chain and of the
longest pipe (`model.py`). A word that another program sends is there `visible` clocks after this
one sent its own, for all run alike. How often what runs is said by rules: a loop by its head and
the function it is in, and likewise what belongs to a condition.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gpu.model import Asked, Warp, asked, norm
from gpu.places import Place, is_below, loop_place, place
from gpu.rates import Rates
from gpu.sass import Code, Instruction, Loop


class Times(NamedTuple):
    """How often something runs, each time it is met."""

    mean: float
    """over the program's warps"""
    most: float
    """of the warp that takes longest"""


@dataclass
class At:
    """Where the walk is: which block of the network, and which round of an outer loop."""

    block: int = 0
    u: int = 0
    phase: str = "start"


class LoopRule(NamedTuple):
    """The trips of a loop whose head has `head` in it, in a function."""

    function: str
    head: str
    trips: Callable[[At], float | Times]


class RoundsRule(NamedTuple):
    """An outer loop that is walked round by round: its trips are not alike."""

    function: str
    head: str
    rounds: Sequence[int]
    """values of `At.u`"""


class ConditionRule(NamedTuple):
    """How often what belongs to a line with `head` in it runs, in a function."""

    function: str
    head: str
    times: Callable[[At], float | Times]


class Rules(NamedTuple):
    """All that is to be known of a kernel beside its code."""

    kernel: str
    threads: int
    loops: Sequence[LoopRule]
    rounds: Sequence[RoundsRule]
    conditions: Sequence[ConditionRule]
    effect: Callable[[At, Sequence[Place]], float]
    """how often the predicate lets do something what is issued, by its places"""
    phase: Callable[[At, Sequence[Place]], tuple[str, int] | None]
    """phase, and block, of an instruction's places, the outermost first; None: as the one before"""


@dataclass
class Phase:
    """What was found of one phase."""

    us: float = 0.0
    issued: float = 0.0
    """instructions of a warp, on average"""
    tensor: float = 0.0
    """clocks of an SM quarter's tensor core that a warp asks, on average"""
    shared: float = 0.0
    """clocks of an SM's shared pipe, likewise"""
    l2_bytes: float = 0.0
    """of all warps"""
    barriers: float = 0.0


_COUNTED = ("issued", "tensor", "shared", "l2_bytes", "barriers")


@dataclass
class _Tally:
    """What has been added up; of a walk, or of its stretch since the last barrier."""

    clocks: dict[str, float] = field(default_factory=dict)
    """by phase: of stretches that are over, or of the chain of the one at hand"""
    sums: dict[str, list[float]] = field(default_factory=dict)
    """by phase: of each of _COUNTED; or of the stretch's pipes, under one name"""

    def copy(self) -> "_Tally":
        return _Tally(dict(self.clocks), {name: list(each) for name, each in self.sums.items()})

    def add(self, phase: str, numbers: Sequence[float], times: float) -> None:
        known = self.sums.get(phase)
        if known is None:
            known = self.sums[phase] = [0.0] * len(numbers)
        for i, number in enumerate(numbers):
            known[i] += times * number

    def add_clocks(self, phase: str, clocks: float) -> None:
        self.clocks[phase] = self.clocks.get(phase, 0.0) + clocks

    def go_on(self, before: "_Tally", rounds: float) -> None:
        """Add so many times what has come since `before`."""
        for phase, clocks in self.clocks.items():
            self.clocks[phase] += (clocks - before.clocks.get(phase, 0.0)) * rounds
        for phase, sums in self.sums.items():
            old = before.sums.get(phase, [0.0] * len(sums))
            self.sums[phase] = [n + (n - o) * rounds for n, o in zip(sums, old, strict=True)]


class _Known(NamedTuple):
    """Of an instruction."""

    places: tuple[Place, ...]
    """the outermost first"""
    conditions: list[ConditionRule]
    receives: bool
    """whether it reads a word that another program sends"""
    sends: bool
    asked: Asked
    """of one time that it runs"""
    l2_bytes: float
    """of all the program's warps"""


def _as_times(given: float | Times) -> Times:
    return given if isinstance(given, Times) else Times(given, given)


class Walk:
    """Walks a kernel once; then `phases` has what each takes, `unknown` what no rule is about."""

    def __init__(self, code: Code, rules: Rules, rates: Rates) -> None:
        self.code, self.rules, self.rates = code, rules, rates
        self.phases: dict[str, Phase] = {}
        self.unknown: set[Place] = set()
        self.at = At()
        self.warp = Warp(rates, global_load="l2")
        self._tally = _Tally()
        self._stretch = _Tally(sums={"": [0.0] * len(Asked._fields)})
        self._sent = float("-inf")
        self._scale = 1.0
        self._warps = rules.threads / 32
        self._known = [self._know(ins) for ins in code.instructions]
        self._run(0, len(code.instructions) - 1, code.loops)
        self._end_stretch()
        self._sum_up()

    def _know(self, ins: Instruction) -> "_Known":
        """Return what of an instruction is the same each time it runs."""
        places = tuple(place(frame) for frame in reversed(ins.frames))
        functions = {each.function for each in places}
        conditions = [
            rule
            for rule in self.rules.conditions
            if any(is_below(frame, rule.function, rule.head) for frame in ins.frames)
        ]
        return _Known(
            places, conditions, "load_flagged" in functions,
            ins.op.startswith("ST") and "store_flagged" in functions,
            asked([ins], [1.0], self.rates), ins.bytes_beyond_l1 * self._warps,
        )  # fmt: skip

    def _run(self, first: int, last: int, loops: Sequence[Loop]) -> None:
        at = first
        for loop in loops:
            self._straight(at, loop.first - 1)
            self._loop(loop, loops)
            at = loop.last + 1
        self._straight(at, last)

    def _loop(self, loop: Loop, siblings: Sequence[Loop]) -> None:
        head = loop_place(loop.frames)
        for rule in self.rules.rounds:
            if rule.function == head.function and rule.head in head.text:
                for self.at.u in rule.rounds:
                    self._run(loop.first, loop.last, loop.inner)
                return
        times = self._times(loop, head, siblings)
        if times.most <= 0:
            return
        before, self._scale = self._scale, self._scale * times.mean / times.most
        if times.most > 1:
            self._run(loop.first, loop.last, loop.inner)
        # Again, for all rounds but the first; or once, for its part of a round.
        rounds = times.most - 1 if times.most > 1 else times.most
        clock, stretch = self.warp.clock, self._stretch
        tally, part = self._tally.copy(), stretch.copy()
        self._run(loop.first, loop.last, loop.inner)
        self.warp.wait((self.warp.clock - clock) * (rounds - 1))
        self._tally.go_on(tally, rounds - 1)
        # A body with a barrier ends in a stretch that began in it: the rounds' are alike.
        if self._stretch is stretch:
            stretch.go_on(part, rounds - 1)
        self._scale = before

    def _trips(self, head: Place) -> Times:
        for rule in self.rules.loops:
            if rule.function == head.function and rule.head in head.text:
                return _as_times(rule.trips(self.at))
        self.unknown.add(head)
        return Times(1, 1)

    def _times(self, loop: Loop, head: Place, siblings: Sequence[Loop]) -> Times:
        """Return a loop's trips. Where it is unrolled it stands there twice: once for the rest."""
        times, at = self._trips(head), siblings.index(loop)
        beside = [*siblings[max(0, at - 1) : at], *siblings[at + 1 : at + 2]]
        same = [each for each in beside if each.frames == loop.frames]
        if not head.text or len(same) != 1:
            return times
        one, other = self._size(loop), self._size(same[0])
        rounds = max(2, round(max(one, other) / min(one, other)))
        whole = Times(times.mean // rounds, times.most // rounds)
        if one > other:
            return whole
        return Times(times.mean - rounds * whole.mean, times.most - rounds * whole.most)

    def _size(self, loop: Loop) -> float:
        body = [self.code.instructions[i] for i in loop.body()]
        return sum(ins.wavefronts > 0 for ins in body) or len(body) / 4

    def _straight(self, first: int, last: int) -> None:
        for i in range(first, last + 1):
            if self.code.runs[i]:
                self._instruction(i)

    def _instruction(self, i: int) -> None:
        ins, known = self.code.instructions[i], self._known[i]
        if found := self.rules.phase(self.at, known.places):
            self.at.phase, self.at.block = found
        times = Times(1, 1)
        for rule in known.conditions:
            given = _as_times(rule.times(self.at))
            times = Times(times.mean * given.mean, times.most * given.most)
        effect = self.rules.effect(self.at, known.places)
        mean = times.mean * self._scale
        if known.receives:
            self._wait()
        before = self.warp.clock
        if times.most > 0:
            self.warp.run(ins, has_effect=effect >= 0.5)
        if times.most < 1:  # what runs in one round of several takes its part of each
            self.warp.wait((self.warp.clock - before) * (times.most - 1))
        self._stretch.add_clocks(self.at.phase, self.warp.clock - before)
        issue, tensor, shared, l2 = known.asked
        asks = (issue, effect * tensor, effect * shared, effect * l2)
        self._stretch.add("", asks, mean)
        counted = (1.0, effect * ins.tensor_clocks, effect * ins.wavefronts, known.l2_bytes)
        self._tally.add(self.at.phase, (*counted, float(ins.is_barrier)), mean)
        if known.sends and times.most > 0:
            self._sent = self._now()
        if ins.is_barrier:
            self._end_stretch()

    def _now(self) -> float:
        return sum(self._tally.clocks.values()) + self._stretch_clocks()

    def _wait(self) -> None:
        missing = self._sent + self.rates.visible.value - self._now()
        if missing > 0:
            self._end_stretch()
            self._tally.add_clocks("waiting for other programs", missing)
            self.warp.wait(missing)

    def _stretch_clocks(self) -> float:
        pipes = Asked(*self._stretch.sums[""])
        return norm(sum(self._stretch.clocks.values()), pipes.busy(self._warps))

    def _end_stretch(self) -> None:
        whole, chain = self._stretch_clocks(), sum(self._stretch.clocks.values())
        for phase, clocks in self._stretch.clocks.items():
            self._tally.add_clocks(phase, whole * clocks / chain if chain else 0.0)
        self._stretch = _Tally(sums={"": [0.0] * len(Asked._fields)})

    def _sum_up(self) -> None:
        for phase, clocks in self._tally.clocks.items():
            sums = self._tally.sums.get(phase, [0.0] * len(_COUNTED))
            counted = dict(zip(_COUNTED, sums, strict=True))
            self.phases[phase] = Phase(us=clocks / self.rates.clock.value / 1e3, **counted)
