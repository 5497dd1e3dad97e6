"""Plan of the persistent kernels: the sizes of their buffers, and which networks and GPUs fit.

`csrc/plan.h`, `forward.h` and `backward.h` say where everything lies; a test compares what is
repeated here.
"""

from functools import cached_property
from itertools import accumulate

import torch

from ..dense.plan import NUM_BLOCKS, Plan

SIDES = (16, 24, 32)
GROWTH_RATES = (8, 16)
MAX_LAYERS = 12
MAX_CHANNELS = 384
"""channels of a block, padded: what a program's loops are planned for"""
THREADS = 512
"""of a program of either pass"""
_OWNERS = {32: 16, 24: 12, 16: 4, 12: 3, 8: 4, 6: 3, 4: 1}
"""by side: warps that share a layer's positions; 16 / owners share the sum over channels"""


def _whole(count: int, size: int) -> int:
    return -(-count // size)


class PersistentPlan:
    """Sizes of one network's kernels. Letters: C channels, groups of 8 of them with gaps.

    is_resident: whether a program has one image, whose maps stay in its shared memory; else
    `programs` of them go through their images in every phase, and maps lie in memory.
    """

    def __init__(self, plan: Plan, programs: int | None = None, is_resident: bool = True) -> None:
        self.plan, self.is_resident = plan, is_resident
        self.programs = plan.batch if programs is None else programs
        assert not is_resident or self.programs == plan.batch, "an image a program"
        self.batch, self.side, self.layers = plan.batch, plan.height, plan.block_layers
        self.made = plan.growth_rate // 8
        """groups that a layer makes"""
        self.groups_in = [b.padded_in // 8 for b in plan.blocks]
        self.groups = [b.padded_channels // 8 for b in plan.blocks]
        self.sides = [plan.height >> i for i in range(NUM_BLOCKS)]

    @property
    def definitions(self) -> dict[str, int]:
        """What the sources are compiled with, but for the dtype."""
        return {
            "BATCH": self.batch,
            "SIDE": self.side,
            "STEM_CHANNELS": self.plan.stem_channels,
            "GROWTH": self.plan.growth_rate,
            "LAYERS": self.layers,
            "RESIDENT": int(self.is_resident),
        }

    def groups_before(self, block: int, layer: int) -> int:
        """Return how many groups the block's layers before `layer` read in all."""
        return sum(self.groups_in[block] + self.made * v for v in range(layer))

    @property
    def num_maps(self) -> int:
        """Elements of every block's (groups, B, positions, 8)."""
        sizes = zip(self.groups, self.sides, strict=True)
        return sum(8 * groups * self.batch * side**2 for groups, side in sizes)

    @property
    def num_statistics(self) -> int:
        """Elements of every block's (2, C)."""
        return 16 * sum(self.groups)

    @property
    def num_affine(self) -> int:
        """Elements of every block's (layers + 1, 2, C)."""
        return (self.layers + 1) * self.num_statistics

    @property
    def num_words(self) -> int:
        """Words of the forward's exchange; the backward's has one more an image."""
        return self.batch * self.num_statistics

    @cached_property
    def columns_at(self) -> tuple[int, ...]:
        """Where each block's part of a program's gradients begins, and the norms' part."""
        sizes = [27 * 8 * self.groups_in[0]]
        for b in range(NUM_BLOCKS):
            sizes.append(576 * self.made * self.groups_before(b, self.layers))
            if b + 1 < NUM_BLOCKS:
                sizes[-1] += 64 * self.groups[b] * self.groups_in[b + 1]
        return tuple(accumulate(sizes))

    @property
    def num_columns(self) -> int:
        """Floats of an image's share of all gradients."""
        return self.columns_at[-1] + self.num_affine

    @property
    def scratch_groups(self) -> int:
        """Raw gradients that a program holds at once: of a block's input, or of a layer."""
        return max(*self.groups_in, self.made)

    @property
    def scratch_tiles(self) -> int:
        """Tiles of a block that a warp of the backward takes, of the largest block."""
        return _whole(_whole(self.side**2, 16), 16)

    @cached_property
    def forward_shared(self) -> int:
        """Bytes of shared memory of a forward program."""
        maps = [16 * groups * side**2 for groups, side in zip(self.groups, self.sides, strict=True)]
        active, partials, split = [(self.side + 2) ** 2 * 6], [16 * 64 * self.groups_in[0]], []
        for b, (groups, side) in enumerate(zip(self.groups, self.sides, strict=True)):
            planes, sharing = 2 * _whole(groups - self.made, 2), 16 // _OWNERS[side]
            if side > 16 or not self.is_resident:  # planes take turns
                planes = min(planes, 4 * sharing)
            active.append(planes * (side + 2) ** 2 * 16)
            tiles = _whole(side**2, 16)
            split.append((sharing - 1) * tiles * 512)
            if not self.is_resident:
                active[-1] += split[-1]
            if b > 0:
                active.append(16 * self.groups[b - 1] * side**2)
                partials.append(tiles * 64 * self.groups_in[b])
        before = max(maps) if self.is_resident else 0
        end = before + _whole(max(active), 16) * 16 + max(partials) + 128 * max(self.groups)
        if not self.is_resident:
            return end
        starts = [m if m + s <= before else end for m, s in zip(maps, split, strict=True)]
        return max(end, *(start + s for start, s in zip(starts, split, strict=True)))

    @cached_property
    def image_bytes(self) -> int:
        """Bytes of an image's maps and gradients in the backward."""
        planes = max(
            groups * (side + 2) ** 2 * 16
            for groups, side in zip(self.groups, self.sides, strict=True)
        )
        ends = sum(
            16 * groups * side**2
            for groups, side in zip(self.groups_in[1:], self.sides[1:], strict=True)
        )
        return planes + ends

    @property
    def backward_shared(self) -> int:
        """Bytes of shared memory of a backward program."""
        work = max(24576, 1024 * (self.layers + 1))
        rest = work + 64 * (self.layers + 2) + 64 * max(self.groups)
        return rest + (self.image_bytes if self.is_resident else 0)

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory that a GPU's programs must have."""
        return max(self.forward_shared, self.backward_shared)


def fitted(plan: Plan, *, processors: int, shared_bytes: int) -> PersistentPlan:
    """Return how a network runs on a GPU: an image a program where it can be.

    processors, shared_bytes: as of `persistent_obstacle`, which says what cannot run at all.
    """
    resident = PersistentPlan(plan)
    if plan.batch <= processors and resident.shared_bytes <= shared_bytes:
        return resident
    return PersistentPlan(plan, min(plan.batch, processors), is_resident=False)


def persistent_obstacle(
    plan: Plan,
    dtype: torch.dtype,
    *,
    capability: tuple[int, int],
    processors: int,
    shared_bytes: int,
) -> str | None:
    """Return why the persistent kernels cannot run this network, in a line that names what fits.

    None where they can. capability, processors and shared_bytes are the GPU's: its compute
    capability, its multiprocessors, and the most shared memory that a program may ask for.
    """
    if capability < (8, 0):
        return f"compute capability {capability[0]}.{capability[1]}: they need 8.0"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"maps of {dtype}: they take bfloat16 or float16"
    if plan.height != plan.width or plan.height not in SIDES:
        return f"images of {plan.height}x{plan.width}: they take squares of 16, 24 or 32"
    if plan.growth_rate not in GROWTH_RATES:
        return f"growth rate {plan.growth_rate}: they take 8 or 16"
    if not 1 <= plan.block_layers <= MAX_LAYERS:
        return f"{plan.block_layers} layers a block: they take 1 to {MAX_LAYERS}"
    if plan.stem_channels < 1 or plan.batch < 1:
        return f"batch {plan.batch}, {plan.stem_channels} stem channels: they take at least 1"
    widest = max(plan.blocks, key=lambda block: block.padded_channels)
    if widest.padded_channels > MAX_CHANNELS:
        return (
            f"block {widest.stage + 1} has {widest.padded_channels} channels: they take "
            f"{MAX_CHANNELS}; take fewer layers, a smaller growth rate or a narrower stem"
        )
    needed = fitted(plan, processors=processors, shared_bytes=shared_bytes).shared_bytes
    if needed > shared_bytes:
        return (
            f"a program takes {needed} bytes of shared memory, and one of this GPU has "
            f"{shared_bytes}: take fewer layers or smaller images"
        )
    return None
