"""Plan: how a backbone's channels, positions and programs are laid out, from its sizes alone.

A block's maps lie as (groups, positions, 8): each 8 channels are a dense plane of records of 8
values, 16 bytes in two-byte dtypes, so that every access is one dense vector whatever the channel
count. Channels-last rows of 72 channels would put records at 144-byte strides, half of each 32-byte
sector unused, and later blocks' groups at addresses that 16-byte accesses cannot take. A block's
input is padded to a multiple of 8 channels; the padding is written as zeros.

Letters: C channels as the parameters count them, CP padded ones.
"""

from typing import NamedTuple

import torch

NUM_BLOCKS = 3
GROWTH_RATES = (8, 16)
SIDES = (16, 32, 64)
MAX_CHANNELS = 128
"""channels of a block, padded, that a program's registers and shared memory are planned for"""

# Launch configuration. NOT MEASURED: no GPU has run these kernels. Reasoned from an H100 (132 SMs),
# DenseNet-DS, batch 128, bf16, and from the compiler's counts of registers
# (bench/results/aot.txt).
#
# One tile is 64 rows of tensor-core products a warp group or more. 256 programs are two an SM, and
# as many partial statistics for the next kernel to combine. Block 3 has 8,192 positions, so 64 a
# tile make 128 programs. The backward takes 8 warps where 4 would spill on sm_100.
_TILES = (128, 128, 64)
_MAX_PROGRAMS = (256, 256, 128)
_FEWER_PROGRAMS = (128, 128, 128)
_FORWARD_WARPS = 4
_TRANSITION_WARPS = 8
_BACKWARD_WARPS = (8, 8, 4)
# Registers a thread, for a group and for a block's input, that leave room for two programs of 8
# warps an SM and for three (bench/results/counts/registers-*.txt): the compiler takes so many that
# one fits, or two. Block 3's 128 programs are less than one an SM.
_MAX_REGISTERS = ((128, 80), (128, 80), (None, None))
# Block 1 walks down rows of 64 positions (several narrow images side by side), at least 8 a
# program: 10 rows are read for 8 written.
_WALK_POSITIONS = 64
_WALK_ROWS = 8
# Weight gradients: few programs keep the fp32 partials small (13 MB), 44 a layer are 4.5 waves.
WEIGHT_CHANNELS = 32
_WEIGHT_PROGRAMS = 44
_WEIGHT_TILE = 128


class Options(NamedTuple):
    """What no card has decided yet, of how a step is launched. None is on by default.

    `bench/gpu/card.py --stages options` times each by itself. Values stay the same but for the
    order of sums with fewer_partials.
    """

    limit_registers: bool = False
    """fewer registers a thread in the group backwards where an SM then holds more programs"""
    weights_beside: bool = False
    """weight gradients on a stream of their own, beside the next block's groups"""
    fewer_partials: bool = False
    """half as many programs in blocks 1 and 2, so that the next kernel has fewer to combine"""


SHIPPED = Options()


def padded(channels: int) -> int:
    """Return `channels` rounded up to whole groups of 8."""
    return -(-channels // 8) * 8


def chunks(channels: int) -> tuple[int, ...]:
    """Split a sum over channels into powers of two from 16 to 64, with the least padding."""
    whole = (64,) * (channels // 64)
    rest = channels % 64
    if rest == 0:
        return whole
    if rest > 48:
        return (*whole, 64)
    if rest > 32:
        return (*whole, 32, 16)
    return (*whole, 32 if rest > 16 else 16)


def _largest_power_of_two_in(number: int) -> int:
    return number & -number


class BlockPlan(NamedTuple):
    """One dense block: its sizes and how its kernels cut them."""

    stage: int
    """0, 1 or 2"""
    batch: int
    height: int
    width: int
    in_channels: int
    growth_rate: int
    num_layers: int
    options: Options = SHIPPED

    @property
    def positions(self) -> int:
        """Positions of all images."""
        return self.batch * self.height * self.width

    @property
    def padded_in(self) -> int:
        """Channels that come in, padded."""
        return padded(self.in_channels)

    @property
    def channels(self) -> int:
        """Channels that go out, as the parameters count them."""
        return self.in_channels + self.num_layers * self.growth_rate

    @property
    def padded_channels(self) -> int:
        """Channels of the block's maps."""
        return self.padded_in + self.num_layers * self.growth_rate

    def padded_before(self, layer: int) -> int:
        """Return how many channels `layer` reads, padded: the first channel that it writes."""
        return self.padded_in + layer * self.growth_rate

    @property
    def tile(self) -> int:
        """Positions of a tile. In blocks 1 and 2 it lies in one image, whose mean it helps make."""
        area = self.height * self.width
        return min(
            _TILES[self.stage], area if self.stage < 2 else _largest_power_of_two_in(self.positions)
        )

    @property
    def num_tiles(self) -> int:
        """Tiles of all positions."""
        return self.positions // self.tile

    @property
    def programs(self) -> int:
        """Programs that share the tiles evenly."""
        most = min(self._max_programs, self.num_tiles)
        return next(n for n in range(most, 0, -1) if self.num_tiles % n == 0)

    @property
    def forward_warps(self) -> int:
        """Warps of a forward program: no more than there are 16 rows for."""
        return max(1, min(_FORWARD_WARPS, self.tile // 16))

    @property
    def transition_warps(self) -> int:
        """Warps of the transition that makes the block: with 4 it would spill."""
        return max(1, min(_TRANSITION_WARPS, self.tile // 8))

    @property
    def backward_warps(self) -> int:
        """Warps of a backward program."""
        return max(1, min(_BACKWARD_WARPS[self.stage], self.tile // 16))

    @property
    def walks(self) -> bool:
        """Whether layers walk down rows, which reads a row 3 times where tiles read it 9 times."""
        return self.stage == 0

    @property
    def walk_images(self) -> int:
        """Images that a walking program takes side by side."""
        wanted = max(1, _WALK_POSITIONS // self.width)
        return min(wanted, _largest_power_of_two_in(self.batch))

    @property
    def walk_rows(self) -> int:
        """Rows that a walking program makes of each image."""
        rows = _WALK_ROWS
        while rows < self.height and self._walks_of(rows) > self._max_programs:
            rows *= 2
        return rows

    @property
    def _max_programs(self) -> int:
        return (_FEWER_PROGRAMS if self.options.fewer_partials else _MAX_PROGRAMS)[self.stage]

    def max_registers(self, is_input: bool) -> int | None:
        """Return the registers a thread of the backward chain's; None: as the compiler likes."""
        return _MAX_REGISTERS[self.stage][is_input] if self.options.limit_registers else None

    def _walks_of(self, rows: int) -> int:
        return self.batch // self.walk_images * (self.height // rows)

    @property
    def layer_programs(self) -> int:
        """Programs of a layer's forward kernel, each with partial statistics of its own."""
        return self._walks_of(self.walk_rows) if self.walks else self.programs

    @property
    def input_means(self) -> int:
        """Means an image that the stem's or the transition's kernel makes of each channel."""
        return self.height * self.width // self.tile

    @property
    def layer_means(self) -> int:
        """Means an image that a layer's forward kernel makes of each channel."""
        return self.height // self.walk_rows if self.walks else self.input_means

    @property
    def weight_tile(self) -> int:
        """Positions of a tile of the weight gradients' kernel."""
        return min(_WEIGHT_TILE, _largest_power_of_two_in(self.positions))

    @property
    def weight_programs(self) -> int:
        """Partial sums of each weight gradient of the block."""
        return min(_WEIGHT_PROGRAMS, self.positions // self.weight_tile)


class Plan(NamedTuple):
    """The whole backbone: three blocks, where their maps and parameters lie in flat buffers."""

    batch: int
    height: int
    width: int
    stem_channels: int
    growth_rate: int
    block_layers: int

    @property
    def blocks(self) -> tuple[BlockPlan, ...]:
        """The blocks in forward order."""
        blocks, channels = [], self.stem_channels
        for i in range(NUM_BLOCKS):
            sizes = self.batch, self.height >> i, self.width >> i
            blocks.append(BlockPlan(i, *sizes, channels, self.growth_rate, self.block_layers))
            channels = blocks[-1].channels // 2
        return tuple(blocks)

    @property
    def conv_shapes(self) -> list[tuple[int, int, int, int]]:
        """Shapes of the convolutions' weights in forward order."""
        shapes = [(self.stem_channels, 3, 3, 3)]
        for i, block in enumerate(self.blocks):
            if i > 0:
                shapes.append((block.in_channels, self.blocks[i - 1].channels, 1, 1))
            shapes += [
                (self.growth_rate, block.in_channels + u * self.growth_rate, 3, 3)
                for u in range(self.block_layers)
            ]
        return shapes

    @property
    def norm_channels(self) -> list[int]:
        """Channels of the norms in forward order."""
        return [
            block.in_channels + u * self.growth_rate
            for block in self.blocks
            for u in range(self.block_layers + 1)
        ]


def dense_obstacle(
    *,
    batch: int,
    height: int,
    width: int,
    stem_channels: int,
    growth_rate: int,
    block_layers: int,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
) -> str | None:
    """Return why the fused kernels cannot run these sizes, in one line that names what fits.

    None where they can. capability: the GPU's compute capability; None for a CPU, where only
    Triton's interpreter runs them: then sizes alone decide, and fp32 maps are taken as well. Any
    batch is taken that has fewer than 2^31 elements in block 1's maps.
    """
    if capability is not None and capability < (8, 0):
        return (
            f"compute capability {capability[0]}.{capability[1]}: before 8.0 Triton's products "
            "leave the tensor cores and spill; take a GPU from 8.0 or the modules"
        )
    if capability is None and dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"maps of {dtype}: they take bfloat16, float16 or float32"
    if capability is not None and dtype not in (torch.float16, torch.bfloat16):
        return f"maps of {dtype}: on a GPU they take bfloat16 or float16, for the tensor cores"
    if height not in SIDES or width not in SIDES:
        return f"images of {height}x{width}: they take sides of 16, 32 or 64"
    if growth_rate not in GROWTH_RATES:
        return f"growth rate {growth_rate}: they take 8 or 16"
    if block_layers < 1 or stem_channels < 1 or batch < 1:
        return (
            f"batch {batch}, {stem_channels} stem channels, {block_layers} layers a block: "
            "they take at least 1 of each"
        )
    plan = Plan(batch, height, width, stem_channels, growth_rate, block_layers)
    widest = max(plan.blocks, key=lambda block: block.padded_channels)
    if widest.padded_channels > MAX_CHANNELS:
        return (
            f"block {widest.stage + 1} has {widest.padded_channels} channels: they take "
            f"{MAX_CHANNELS}; take fewer layers, a smaller growth rate or a narrower stem"
        )
    largest = max(block.positions * block.padded_channels for block in plan.blocks)
    if largest >= 2**31:
        fits = (2**31 - 1) // (largest // batch)
        return f"batch {batch}: their offsets have 32 bits; take at most {fits}"
    return None
