"""A calculated time of a kernel, from its machine code and how often a warp runs each part of it.

    one launch = start + waves * sqrt(chain^2 + busy^2)
    chain      what a warp would take alone: stalls and scoreboards are in the code, latencies in
               `rates.py`
    busy       the longest of an SM's pipes: issue, tensor cores, L1 and shared memory, L2

Other warps fill a chain's gaps only in part: chain and busy add up as a norm, between maximum and
sum. Nothing here is measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gpu.rates import Rates
from gpu.sass import Code, Instruction, Loop

Trips = Callable[[Loop], float]

_LATENCY = {
    "LDS": "shared", "LDSM": "ldmatrix", "STS": "store", "STG": "store", "SHFL": "shuffle",
    "MUFU": "special", "convert": "convert", "MMA": "mma",
}  # fmt: skip


@dataclass
class Warp:
    """A warp that has an SM for itself, clock by clock."""

    rates: Rates
    global_load: str = "memory"
    """name of the rate of a load from global memory that is no constant load"""
    clock: float = 0.0
    _ready: list[float] = field(default_factory=lambda: [0.0] * 6)
    """of each scoreboard: when what it waits for is there"""
    _groups: float = 0.0
    """when the products of a warp group are done, which set no scoreboard"""

    def run(self, ins: Instruction, *, has_effect: bool = True) -> None:
        """Issue one instruction, as soon as it can be. has_effect: its predicate is true."""
        rates = self.rates
        self.clock = max([self.clock, *(self._ready[b] for b in ins.waits)])
        if ins.op.startswith("WARPGROUP.DEPBAR"):
            self.clock = max(self.clock, self._groups)
        if ins.is_barrier:
            self.clock += rates.barrier.value
        latency = self._latency(ins) if has_effect else self.rates.read.value
        if ins.op.startswith("HGMMA"):
            done = max(self._groups - latency, self.clock) + ins.tensor_clocks
            self._groups = done + latency
        if ins.sets < 6:
            self._ready[ins.sets] = max(self._ready[ins.sets], self.clock + latency)
        if ins.releases < 6:
            read = self.clock + rates.read.value
            self._ready[ins.releases] = max(self._ready[ins.releases], read)
        self.clock += max(1, ins.stall)

    def wait(self, clocks: float) -> None:
        """Stand still: all that was under way comes nearer."""
        self.clock += clocks

    def _latency(self, ins: Instruction) -> float:
        name = _LATENCY.get(ins.kind, "other")
        if ins.kind == "LDG":
            kept = ".CONSTANT" in ins.op or ins.op.startswith("LDL")
            name = "l1" if kept else self.global_load
        elif ins.op.startswith(("LDC", "ULDC")):
            name = "l1"
        rate = getattr(self.rates, name)
        return float(rate.value)


def chain_clocks(code: Code, trips: Trips, rates: Rates) -> float:
    """Return the clocks of one warp alone. Of a loop, the second trip's time stands for the rest.

    What does not run, and a loop of no trips, takes none.
    """
    warp = Warp(rates)

    def run(first: int, last: int, loops: Sequence[Loop]) -> None:
        at = first
        for loop in loops:
            straight(at, loop.first - 1)
            count = trips(loop)
            if count > 0:
                run(loop.first, loop.last, loop.inner)
            if count > 1:
                before = warp.clock
                run(loop.first, loop.last, loop.inner)
                warp.wait((warp.clock - before) * (count - 2))
            at = loop.last + 1
        straight(at, last)

    def straight(first: int, last: int) -> None:
        for i in range(first, last + 1):
            if code.runs[i]:
                warp.run(code.instructions[i])

    run(0, len(code.instructions) - 1, code.loops)
    return warp.clock


class Asked(NamedTuple):
    """Clocks that one warp asks of an SM's pipes."""

    issue: float
    """of a quarter"""
    tensor: float
    """of a quarter"""
    shared: float
    """of L1 and shared memory, which the quarters share"""
    l2: float

    def busy(self, warps: float) -> float:
        """Return the clocks of the longest pipe, of so many warps on an SM."""
        quarter = warps / 4
        return max(self.issue * quarter, self.tensor * quarter, self.shared * warps,
                   self.l2 * warps)  # fmt: skip


def asked(instructions: Sequence[Instruction], times: Sequence[float], rates: Rates) -> Asked:
    """Return what a warp asks that runs each instruction so many times."""
    pairs = [(ins, n) for ins, n in zip(instructions, times, strict=True) if n]
    groups = sum(n * ins.tensor_clocks for ins, n in pairs if ins.op.startswith("HGMMA"))
    singles = sum(n * ins.tensor_clocks for ins, n in pairs if ins.op.startswith("HMMA"))
    return Asked(
        issue=sum(n for _, n in pairs),
        tensor=groups + singles / rates.mma_share.value,
        shared=sum(n * ins.wavefronts for ins, n in pairs),
        l2=sum(n * ins.bytes_beyond_l1 for ins, n in pairs) / rates.l2_bytes.value,
    )


def norm(chain: float, busy: float) -> float:
    """Return the clocks of work whose warps wait for each other only in part."""
    return float((chain**2 + busy**2) ** 0.5)


def resident(registers: int, shared_bytes: int, warps: int) -> int:
    """Return how many programs an SM of compute capability 9.0 holds (CUDA's occupancy tables).

    Registers are given out by 256 a warp, shared memory with 1 KiB a program of its own.
    """
    by_registers = 65_536 // (-(-registers // 8) * 8 * 32 * warps)
    by_shared = 228 * 1024 // (shared_bytes + 1024)
    return max(1, min(by_registers, by_shared, 64 // warps, 32))


class LaunchModel(NamedTuple):
    """What was counted of a launch, and its calculated time."""

    us: float
    chain_us: float
    """of one warp, times the waves"""
    busy_us: dict[str, float]
    """pipe -> us"""
    resident: int
    """programs that an SM holds"""
    instructions: float
    """that all warps issue"""


def launch_model(
    code: Code, trips: Trips, *, warps: int, registers: int, shared_bytes: int, programs: int,
    rates: Rates,
) -> LaunchModel:  # fmt: skip
    """Return the model of a launch of `programs` programs of `warps` warps."""
    times = code.executed(trips)
    each = asked(code.instructions, times, rates)
    fits = resident(registers, shared_bytes, warps)
    most = -(-programs // int(rates.sms.value))
    here = min(fits, most)
    waves, on_sm = most / here, here * warps
    chain = chain_clocks(code, trips, rates)
    to_us = 1e-3 / rates.clock.value
    busy = {
        "issue": each.issue * on_sm / 4, "tensor": each.tensor * on_sm / 4,
        "shared": each.shared * on_sm, "l2": each.l2 * on_sm,
    }  # fmt: skip
    wave = norm(chain, each.busy(on_sm))
    return LaunchModel(
        us=rates.start.value + waves * wave * to_us,
        chain_us=waves * chain * to_us,
        busy_us={name: waves * clocks * to_us for name, clocks in busy.items()},
        resident=fits,
        instructions=each.issue * warps * programs,
    )
