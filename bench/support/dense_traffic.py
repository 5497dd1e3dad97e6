"""Bytes of every launch of dense_backbone: what it reads once, what it writes once.

As `support/traffic.py` counts a call. Of the weight gradients' launch every layer counts as a
reader of its channels. Where the grid makes programs read a value again (halos, slices of
channels), caches are trusted. Partial sums are counted, parameters as well.
"""

from math import prod

from lion_fast.kernels.dense.launch_backward import gradient_size
from lion_fast.kernels.dense.plan import BlockPlan, Plan

_SINGLE = 4


def launch_bytes(plan: Plan, value_bytes: int) -> dict[str, int]:
    """Return bytes by launch, in order of a step. value_bytes: of one value of a map."""
    blocks = plan.blocks
    parameters = gradient_size(plan)
    found = {"pack": parameters * (_SINGLE + value_bytes)}
    for i, block in enumerate(blocks):
        name, read = _producer(plan, i)
        found[name] = value_bytes * (read + block.padded_in * block.positions)
        found[name] += _statistics(block.programs, block.padded_in)
        for u in range(block.num_layers):
            channels = block.padded_before(u) + block.growth_rate
            found[f"block {i + 1} layer {u}"] = value_bytes * channels * block.positions
            found[f"block {i + 1} layer {u}"] += _statistics(
                block.layer_programs, block.growth_rate
            )
    last = blocks[-1]
    pooled = _SINGLE * plan.batch * sum(block.channels for block in blocks)
    found["taps"] = value_bytes * last.padded_channels * last.positions + pooled
    found["running statistics"] = 4 * _SINGLE * sum(plan.norm_channels)
    for i in reversed(range(len(blocks))):
        end = blocks[i + 1] if i + 1 < len(blocks) else None
        for maker in reversed(range(-1, plan.block_layers)):
            name = f"group {maker}" if maker >= 0 else "input"
            found[f"block {i + 1} {name} backward"] = _group(blocks[i], end, maker, value_bytes)
        found[f"block {i + 1} weights backward"] = _weights(plan, i, value_bytes)
    partials = sum(_conv_partials(plan, i) for i in range(len(blocks))) + sum(
        _norm_partials(plan, i) for i in range(len(blocks))
    )
    found["reduce"] = partials + _SINGLE * parameters
    return found


def scratch_bytes(plan: Plan, value_bytes: int) -> int:
    """Return the bytes that programs of the backward chain write for themselves and read again.

    No launch's input or output: each program fills its own few kilobytes anew for every tile. They
    are in no figure of `launch_bytes`; each launch's scratch counts once written and once read.
    """
    values = 0
    for block in plan.blocks:
        slices = plan.block_layers - 1 + max(block.growth_rate, block.padded_in) // 8
        a_program = 2 * (block.tile + 2 * block.width) * block.growth_rate
        values += 2 * block.programs * slices * a_program
    return values * value_bytes


def _producer(plan: Plan, i: int) -> tuple[str, int]:
    """Return the launch that makes block i's input, and how many values it reads."""
    if i == 0:
        return "stem", 3 * plan.blocks[0].positions
    before = plan.blocks[i - 1]
    return f"transition {i}", before.padded_channels * before.positions


def _statistics(programs: int, channels: int) -> int:
    """Return the bytes of two partial statistics, written here and read by the next launch."""
    return 2 * 2 * _SINGLE * programs * channels


def _group(block: BlockPlan, end: BlockPlan | None, maker: int, value_bytes: int) -> int:
    growth, layers, n = block.growth_rate, block.num_layers, block.positions
    width = growth if maker >= 0 else block.padded_in
    values = 2 * width * n  # its map, its gradient
    if maker + 1 < layers:
        values += 3 * growth * n  # the gradient before it, its map; corrected, and written
    values += growth * n * max(0, layers - maker - 2)
    if end is not None:
        corrects = maker == layers - 1
        values += (3 if corrects else 1) * end.padded_in * end.positions
    readers = layers - maker
    return value_bytes * values + 2 * _SINGLE * block.programs * width * readers


def _weights(plan: Plan, i: int, value_bytes: int) -> int:
    block = plan.blocks[i]
    n, layers = block.positions, block.num_layers
    values = n * (sum(block.padded_before(u) for u in range(layers)) + layers * block.growth_rate)
    if i == 0:
        values += n * (3 + 2 * block.padded_in)
    if i + 1 < len(plan.blocks):
        end = plan.blocks[i + 1]
        values += n * block.padded_channels + end.positions * end.padded_in
    return value_bytes * values + _conv_partials(plan, i)


def _conv_partials(plan: Plan, i: int) -> int:
    """Return the bytes of the partial weight gradients that block i's launch makes."""
    layers = plan.block_layers
    shapes = plan.conv_shapes[1 + i * (layers + 1) : 1 + (i + 1) * (layers + 1)]
    if i == 0:
        shapes = [plan.conv_shapes[0], *shapes]
    return _SINGLE * plan.blocks[i].weight_programs * sum(map(prod, shapes))


def _norm_partials(plan: Plan, i: int) -> int:
    norms = plan.norm_channels[i * (plan.block_layers + 1) : (i + 1) * (plan.block_layers + 1)]
    return 2 * _SINGLE * plan.blocks[i].programs * sum(norms)
