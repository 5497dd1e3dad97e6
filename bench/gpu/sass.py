"""Machine code of a kernel: its instructions, their kinds, its loops, and the sources of both.

nvdisasm prints an instruction's 128 bits, of which the upper ones tell the scheduler what to do:
clocks to stall, the scoreboard that a result sets, those that it waits for (Jia et al. 2018,
arXiv 1804.06826; sm_90 has kept the places). With line information it prints where an instruction
comes from, through every inlined call.

A loop is a jump back to an instruction that every way to the jump passes. Code for warps that have
diverged (`BRA.DIV`), and blocks that call a subroutine, for numbers that are no normal ones, are
taken not to run.
"""

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

# In lower case: the x of HGMMA.64x8x16, which decides what it costs.
_INSTRUCTION = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P[0-9T]+\s+)?([A-Za-z0-9_.]+)([^;]*);\s*/\* 0x[0-9a-f]{16} \*/"
)
_HIGH_HALF = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/")
_LABEL = re.compile(r"^(\.L_[^:]*):")
_TARGET = re.compile(r"`\((\.L_[^)]*)\)")
_FRAME = re.compile(r'^\s*//## File "([^"]*)", line (\d+)')
_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)")

KINDS = {
    "LDSM": ("LDSM",),
    "LDS": ("LDS",),
    "STS": ("STS", "STSM"),
    "LDG": ("LDG", "LD.", "LDL"),
    "STG": ("STG", "ST.", "STL"),
    "MMA": ("HMMA", "HGMMA"),
    "FP": ("FFMA", "FADD", "FMUL", "FMNMX", "FSETP", "FSEL", "HFMA2", "HADD2", "HMUL2", "HMNMX2"),
    "convert": ("F2F", "F2FP", "I2F", "F2I", "PRMT"),
    "sync": ("BAR", "WARPGROUP", "WARPSYNC", "DEPBAR", "MEMBAR"),
    "SHFL": ("SHFL", "MOVM"),
    "MUFU": ("MUFU",),
    "branch": ("BRA", "BSSY", "BSYNC", "EXIT", "CALL", "RET", "BREAK"),
}
"""kind -> how its instructions' names begin; the first that fits; all others are "integer\""""


class Frame(NamedTuple):
    """A place in a source."""

    file: str
    """name without its folder"""
    line: int


@dataclass
class Instruction:
    """One instruction. `stall` in clocks; of scoreboards there are six, 7 means none."""

    op: str
    """with its suffixes"""
    args: str
    guard: str
    stall: int
    sets: int
    """scoreboard that is cleared when the result is there"""
    releases: int
    """scoreboard that is cleared when the operands have been read"""
    waits: tuple[int, ...]
    frames: tuple[Frame, ...]
    """where it comes from: the innermost call first; empty without line information"""
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        names = ((kind, name) for kind, starts in KINDS.items() for name in starts)
        self.kind = next((kind for kind, name in names if self.op.startswith(name)), "integer")

    @property
    def is_barrier(self) -> bool:
        """Whether all warps of the program meet here."""
        return self.op.startswith("BAR")

    @property
    def tensor_clocks(self) -> float:
        """Clocks of an SM quarter's tensor core at its peak, 512 16-bit products a clock."""
        if self.kind != "MMA":
            return 0.0
        if shape := _SHAPE.search(self.op):  # of a warp group: a quarter each
            m, n, k = map(int, shape.groups())
            return m * n * k / 4 / 512
        return 2.0 if ".1688" in self.op else 4.0

    @property
    def wavefronts(self) -> int:
        """Clocks of the pipe of L1 and shared memory, free of conflicts; 0 of what uses neither."""
        if self.kind == "LDSM":
            return 4 if ".4" in self.op else 2 if ".2" in self.op else 1
        if self.kind in ("LDS", "STS", "LDG", "STG"):
            return 4 if ".128" in self.op else 2 if ".64" in self.op else 1
        return 0

    @property
    def bytes_beyond_l1(self) -> int:
        """Bytes a warp moves between L1 and L2: of constant loads none, which L1 is taken to hold.

        Nor of local memory.
        """
        if not self.op.startswith(("LDG", "STG", "LD.", "ST.")) or ".CONSTANT" in self.op:
            return 0
        narrow = 2 if ".U16" in self.op else 1 if ".U8" in self.op else 4
        return 32 * (16 if ".128" in self.op else 8 if ".64" in self.op else narrow)


@dataclass
class Loop:
    """A loop's instructions first ... last, as they lie; loops inside are `inner`."""

    first: int
    last: int
    frames: tuple[Frame, ...]
    """where its jump back comes from"""
    inner: "list[Loop]" = field(default_factory=list)

    def body(self) -> range:
        """Return the indices of its instructions, inner loops' among them."""
        return range(self.first, self.last + 1)


@dataclass
class Code:
    """A kernel."""

    instructions: list[Instruction]
    runs: list[bool]
    """of each instruction: whether it can run (see above)"""
    loops: list[Loop]
    """those that no other holds"""

    def all_loops(self) -> list[Loop]:
        """Return every loop, an outer one before those inside, in the order of the code."""
        found: list[Loop] = []

        def add(loops: Sequence[Loop]) -> None:
            for loop in loops:
                found.append(loop)
                add(loop.inner)

        add(self.loops)
        return found

    def executed(self, trips: Callable[[Loop], float]) -> list[float]:
        """Return how often a warp runs each instruction. trips: of a loop, each time it is met."""
        times = [float(runs) for runs in self.runs]
        for loop in self.all_loops():
            count = trips(loop)
            for i in loop.body():
                times[i] *= count
        return times


def disassembled(cubin: Path, nvdisasm: str) -> str:
    """Return what nvdisasm prints of a file; raise CalledProcessError where it cannot read it."""
    command = [nvdisasm, "-c", "-hex", "-gi", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:  # it reads no inlined calls of files without line information
        done = subprocess.run(
            [*command[:3], str(cubin)], check=True, capture_output=True, text=True
        )
    return done.stdout


def parse(text: str) -> Code:
    """Read what nvdisasm printed of a file with one kernel."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    frames: list[Frame] = []
    is_new = True  # the next frame belongs to another instruction than the last
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif frame := _FRAME.match(line):
            frames = [] if is_new else frames
            is_new = False
            frames.append(Frame(frame[1].rpartition("/")[2], int(frame[2])))
        elif found := _INSTRUCTION.search(line):
            is_new = True
            _, guard, op, args = found.groups()
            high = _HIGH_HALF.match(lines[number + 1])
            assert high, f"{op} without its upper half"
            control = int(high[1], 16) >> 41
            waits = tuple(b for b in range(6) if control >> 11 + b & 1)
            instructions.append(
                Instruction(
                    op,
                    args,
                    (guard or "").strip(),
                    control & 15,
                    control >> 5 & 7,
                    control >> 8 & 7,
                    waits,
                    tuple(frames),
                )  # fmt: skip
            )
    return _with_loops(instructions, labels)


def _with_loops(instructions: list[Instruction], labels: dict[str, int]) -> Code:
    targets: dict[int, int] = {}
    for i, ins in enumerate(instructions):
        if ins.op.startswith("BRA") and (name := _TARGET.search(ins.args)):
            targets[i] = labels[name[1]]
    starts = sorted({0, *targets.values(), *(i + 1 for i in targets), *_behind_ends(instructions)})
    starts = [start for start in starts if start < len(instructions)]
    block_of = {start: b for b, start in enumerate(starts)}
    ends = [*(start - 1 for start in starts[1:]), len(instructions) - 1]
    follows: list[list[int]] = []
    for start, end in zip(starts, ends, strict=True):
        last = instructions[end]
        found = []
        calls = any(ins.op.startswith("CALL") for ins in instructions[start : end + 1])
        if end in targets and ".DIV" not in last.op:
            found.append(block_of[targets[end]])
        goes_on = last.guard or ".DIV" in last.op or not last.op.startswith(("BRA", "EXIT", "RET"))
        if goes_on and end + 1 < len(instructions):
            found.append(block_of[end + 1])
        follows.append([] if calls else found)
    ancestors = _dominators(follows)
    runs = [False] * len(instructions)
    for b, (start, end) in enumerate(zip(starts, ends, strict=True)):
        calls = any(ins.op.startswith("CALL") for ins in instructions[start : end + 1])
        runs[start : end + 1] = [ancestors[b] is not None and not calls] * (end + 1 - start)
    loops: dict[int, int] = {}
    for b, after in enumerate(follows):
        for head in after:
            known = ancestors[b]
            if known is not None and known >> head & 1 and starts[head] <= ends[b]:
                loops[starts[head]] = max(loops.get(starts[head], 0), ends[b])
    outer: list[Loop] = []
    for first, last_one in sorted(loops.items(), key=lambda each: (each[0], -each[1])):
        inside = outer
        while inside and inside[-1].last >= last_one:
            inside = inside[-1].inner
        inside.append(Loop(first, last_one, instructions[last_one].frames))
    return Code(instructions, runs, outer)


def _behind_ends(instructions: Sequence[Instruction]) -> list[int]:
    return [i + 1 for i, ins in enumerate(instructions) if ins.op.startswith(("EXIT", "RET"))]


def _dominators(follows: Sequence[Sequence[int]]) -> list[int | None]:
    """Return the bits of the blocks that every way to a block passes, itself among them.

    None where no way leads.
    """
    before: list[list[int]] = [[] for _ in follows]
    for b, after in enumerate(follows):
        for each in after:
            before[each].append(b)
    found: list[int | None] = [None] * len(follows)
    found[0] = 1
    changed = True
    while changed:
        changed = False
        for b in range(1, len(follows)):
            known = [bits for p in before[b] if (bits := found[p]) is not None]
            if not known:
                continue
            meet = known[0]
            for bits in known[1:]:
                meet &= bits
            if (new := meet | 1 << b) != found[b]:
                found[b], changed = new, True
    return found
