"""What the model of time takes for granted: each rate with its source, or the word "assumed".

Clocks are an SM's. No rate was fitted to a kernel of this project. A model that rests on them is
quoted as "calculated", never as measured.
"""

from dataclasses import dataclass, fields, replace
from typing import NamedTuple


class Rate(NamedTuple):
    """A number that the model rests on."""

    value: float
    unit: str
    source: str


_LUO = "Luo et al. 2025, arXiv 2501.12084"


@dataclass(frozen=True)
class Rates:
    """Of an H200. Latencies are from an instruction's issue to its result."""

    sms: Rate = Rate(132, "SMs", "NVIDIA H100 and H200 SXM data sheets")
    clock: Rate = Rate(1.98, "GHz", "the card's highest; assumed, the run did not record it")
    mma_share: Rate = Rate(0.62, "of the peak that mma.sync reaches", _LUO)
    start: Rate = Rate(1.6, "us an empty launch in a CUDA graph", "assumed")
    memory: Rate = Rate(560, "clocks of a load from memory or L2, loaded", "assumed")
    l2: Rate = Rate(300, "clocks of a load from L2", "assumed")
    l1: Rate = Rate(40, "clocks of a load that L1 holds", "assumed")
    shared: Rate = Rate(30, "clocks of a load from shared memory", "assumed")
    ldmatrix: Rate = Rate(33, "clocks of an ldmatrix", "assumed")
    store: Rate = Rate(25, "clocks until a store's operands are free", "assumed")
    shuffle: Rate = Rate(25, "clocks of a shuffle", "assumed")
    special: Rate = Rate(25, "clocks of a reciprocal or root", "assumed")
    convert: Rate = Rate(18, "clocks of a conversion", "assumed")
    mma: Rate = Rate(35, "clocks of a tensor-core product", "assumed")
    other: Rate = Rate(20, "clocks of whatever else sets a scoreboard", "assumed")
    barrier: Rate = Rate(20, "clocks of a barrier that all have reached", "assumed")
    read: Rate = Rate(12, "clocks until operands have been read", "assumed")
    l2_bytes: Rate = Rate(40, "bytes a clock between an SM and L2", "assumed")
    visible: Rate = Rate(700, "clocks until another SM sees a word", "assumed")
    cooperative_start: Rate = Rate(2.0, "us an empty cooperative launch", "assumed")

    def items(self) -> list[tuple[str, Rate]]:
        """Return (name, rate) of each."""
        return [(each.name, getattr(self, each.name)) for each in fields(self)]

    def changed(self, name: str, factor: float) -> "Rates":
        """Return the rates with one of them multiplied."""
        rate: Rate = getattr(self, name)
        return replace(self, **{name: rate._replace(value=rate.value * factor)})


H200 = Rates()
