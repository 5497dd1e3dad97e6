"""How often what runs in the persistent kernels, for DenseNet-DS at one image a program.

Heads are parts of lines of `kernels/persistent/csrc`, functions those they are in. A loop that no
rule is about is taken to run once, and named beside the result.
"""

import re
from collections.abc import Sequence

from gpu.places import Place
from gpu.walk import At, ConditionRule, LoopRule, RoundsRule, Rules, Times
from lion_fast.kernels.persistent.aot import PAPER
from lion_fast.kernels.persistent.plan import THREADS, PersistentPlan

_SIZES = PersistentPlan(PAPER)
_WARPS = THREADS // 32
_LAYERS = _SIZES.layers
_TEMPLATE = re.compile(r"<(?:Walk<)?(\d)>")
_PHASES = {
    "stem": "stem", "layer": "block {}", "transition": "transition {}", "last_tap": "last tap",
    "load_maps": "block {} load maps", "transition_gradients": "transition {} weights",
    "pull": "block {} pull", "weight_gradients": "block {} weights",
    "receive_sums": "block {} correct", "correct": "block {} correct",
    "stem_gradients": "stem weights", "sum_programs": "sum over programs",
}  # fmt: skip


def _whole(count: float, size: float) -> int:
    return int(-(-count // size))


def _positions(at: At) -> int:
    return int(_SIZES.sides[at.block] ** 2)


def _groups(at: At) -> int:
    """Return the groups that layer u reads."""
    return int(_SIZES.groups_in[at.block] + _SIZES.made * at.u)


def _takes_turns(at: At) -> bool:
    return bool(_SIZES.sides[at.block] > 16)


def _stages(at: At) -> int:
    """Return the stages of a layer: single chunks, or those that are known, then the others."""
    if _takes_turns(at):
        return _whole(_groups(at), 2)
    return 2 if at.u and (_groups(at) - _SIZES.made) // 2 else 1


def _split(at: At) -> int:
    """Return how many warps share a sum over channels, in the forward."""
    return _WARPS // {32: 16, 16: 4, 8: 4}[_SIZES.sides[at.block]]


def _owners(at: At) -> int:
    """Return how many warps hold the block's positions, in the backward."""
    tiles = _whole(_positions(at), 16)
    return tiles // _whole(tiles, _WARPS)


def _threads(count: float) -> Times:
    """Of a loop that hands `count` items to threads."""
    return Times(count / THREADS, _whole(count, THREADS))


def _warps(count: float) -> Times:
    """Of a loop that hands `count` items to warps."""
    return Times(count / _WARPS, _whole(count, _WARPS))


def _some(warps: float) -> Times:
    """Of what so many of the warps run."""
    return Times(min(1.0, warps / _WARPS), 1)


def _cleared(_: At) -> Times:
    """Of the planes' 16-byte records: block 1's four planes in turn are the largest."""
    return _threads(max(
        (min(planes, 4) if side > 16 else planes) * (side + 2) ** 2
        for groups, side in zip(_SIZES.groups, _SIZES.sides, strict=True)
        for planes in [2 * _whole(groups - _SIZES.made, 2)]
    ))  # fmt: skip


def _shares(groups: int, units: int) -> Times:
    """Of a loop over units that the warps of each chunk share."""
    chunks = _whole(groups, 2)
    return Times(units * chunks / _WARPS, _whole(units, _WARPS // chunks))


def _read_behind(at: At) -> int:
    """Return the groups that the layer behind u reads, whose weights' gradients are made."""
    return int(_SIZES.groups_in[at.block] + _SIZES.made * (at.u + 1))


def _received(at: At) -> int:
    """Return the channels whose words are waited for."""
    return 8 * (_SIZES.groups_in[at.block] if at.u == 0 else _SIZES.made)


def _chunks_summed(at: At) -> int:
    """Return the chunks whose sums over warps are added up."""
    if "transition" in at.phase:
        return _whole(_SIZES.groups[at.block], 2)
    return 1 if "stem" in at.phase else _whole(_read_behind(at), 2)


def _fresh_rows(at: At) -> float:
    """Return the share of kernel rows that a unit of weight gradients loads itself."""
    side = _SIZES.sides[at.block]
    return 1.0 if side % 16 else (1 + 2 / side) / 3


_COMMON_LOOPS = (
    LoopRule("load_flagged", "while (waits)", lambda at: 1),
    # Sizes that the compiler did not fold: `block` is block 3's number, or counts up to it.
    LoopRule("channels_in", "b < block", lambda at: at.block / 2),
    LoopRule("columns_at", "b < block", lambda at: at.block),
    LoopRule("turned_at", "b < block", lambda at: at.block),
    LoopRule("weights_at", "b < block", lambda at: at.block),
    LoopRule("chunks_before", "v < u", lambda at: at.u),
    # Short ones, which the compiler mostly unrolls.
    *(LoopRule(name, "made < MADE", lambda at: _SIZES.made)
      for name in ("layer", "from_layer", "weight_gradients")),
    LoopRule("pull", "e < 2", lambda at: 2),
    LoopRule("last_tap", "i < 8", lambda at: 8),
)  # fmt: skip
_FORWARD_LOOPS = (
    LoopRule("clear_active", "most_active_bytes", _cleared),
    LoopRule("stem", "SIDE * SIDE * 3", lambda at: _threads(3 * _positions(At(0)))),
    LoopRule("layer", "while (true)", lambda at: _stages(at)),
    LoopRule("layer", "chunk < next", lambda at: Times(
        _whole(_groups(at), 2) / _split(at) / _stages(at),
        _whole(_whole(_groups(at), 2), _split(at)) / _stages(at),
    )),
    LoopRule("receive", "c < first + channels", lambda at: _warps(_received(at))),
    LoopRule("activate", "(last - first) * N", lambda at: _threads(
        _groups(at) * _positions(at) / _stages(at)
    )),
    LoopRule("transition", "GROUPS * M", lambda at: _threads(
        _SIZES.groups[at.block] * _positions(at) / 4
    )),
    LoopRule("transition", "TILES * OUT", lambda at: _warps(
        _whole(_positions(at) / 4, 16) * _SIZES.groups_in[at.block + 1]
    )),
    LoopRule("transition", "chunk < CHUNKS", lambda at: _whole(_SIZES.groups[at.block], 2)),
    LoopRule("last_tap", "group < groups_of", lambda at: _warps(_SIZES.groups[at.block])),
    LoopRule("last_tap", "q < N", lambda at: _whole(_positions(at), 32)),
)  # fmt: skip
_FORWARD_CONDITIONS = (
    ConditionRule("layer", "if (done == known)", lambda at: 1 / _stages(at)),
    ConditionRule("layer", "if (part == 0)", lambda at: _some(_WARPS / _split(at))),
    ConditionRule("publish", "if (p.thread < channels)", lambda at: _some(1)),
    ConditionRule("receive", "if (p.lane == 0)", lambda at: 1),
)
_BACKWARD_LOOPS = (
    LoopRule("load_maps", "PITCH * PITCH", lambda at: _threads(
        _SIZES.groups[at.block] * (_SIZES.sides[at.block] + 2) ** 2
    )),
    LoopRule("block_backward", "g < groups", lambda at: (
        _SIZES.groups_in[at.block] if at.u < 0 else _SIZES.made
    )),
    LoopRule("pull", "v < LAYERS", lambda at: _LAYERS - 1 - at.u),
    LoopRule("pull", "r < readers", lambda at: _LAYERS - at.u),
    LoopRule("weight_gradients", "unit < share.end", lambda at: _shares(
        _read_behind(at), _whole(_positions(at), 16)
    )),
    LoopRule("transition_gradients", "unit < share.end", lambda at: _shares(
        _SIZES.groups[at.block], _whole(_positions(at) / 4, 16)
    )),
    LoopRule("stem_gradients", "SIDE + 2", lambda at: _threads(3 * (_SIZES.side + 2) ** 2)),
    LoopRule("stem_gradients", "unit < W::ALL", lambda at: _whole(_positions(At(0)), 16) / _WARPS),
    LoopRule("sum_warps", "item < chunks", lambda at: _threads(96 * _chunks_summed(at))),
    LoopRule("sum_warps", "w = chunk", lambda at: _WARPS / _chunks_summed(at)),
    LoopRule("sum_programs", "i < ", lambda at: _threads(
        _whole(_SIZES.num_columns, _SIZES.batch)
    )),
    LoopRule("sum_programs", "at < num_programs", lambda at: _SIZES.batch / 32),
    # Unrolled by 16.
    LoopRule("sum_programs", "< BATCH", lambda at: _SIZES.batch / 16),
)  # fmt: skip
_BACKWARD_CONDITIONS = (
    ConditionRule("block_backward", "if (u + 1 < LAYERS)", lambda at: float(at.u + 1 < _LAYERS)),
    ConditionRule("pull", "if (p.warp < W::OWNERS)", lambda at: _some(_owners(at))),
    ConditionRule("pull", "if (reader < readers)", lambda at: _some((_LAYERS - at.u) / 2)),
    ConditionRule("pull", "if (p.thread < 16)", lambda at: _some(1)),
    ConditionRule("weight_gradients", "if (kh >= fresh)", _fresh_rows),
)


def _effect(at: At, places: Sequence[Place]) -> float:
    """Of a chunk of two groups or of one, `multiply` has both cases in it, under a predicate."""
    if "multiply" not in (each.function for each in places):
        return 1.0
    single = _groups(at) % 2 / _whole(_groups(at), 2)
    case = places[-1].function
    if case in ("multiply_8", "load_matrices_2"):
        return single
    return 1.0 - single if case in ("multiply_16", "load_matrices_4") else 1.0


def _phase(at: At, places: Sequence[Place]) -> tuple[str, int] | None:
    for each in places:
        if name := _PHASES.get(each.function):
            # Where the compiler kept no outer call, it is the block of what came before.
            found = _TEMPLATE.search(places[0].text)
            block = int(found[1]) if found else at.block if "{}" in name else 0
            # NVRTC says that block 2 loads block 1's maps, where it has corrected its last group.
            done = f"block {block + 1} correct", f"block {block} load maps"
            if each.function == "load_maps" and block and at.phase in done:
                block -= 1
            return name.format(block + 1), block
    return None


FORWARD = Rules(
    "forward.cu", THREADS, (*_COMMON_LOOPS, *_FORWARD_LOOPS),
    (RoundsRule("dense_persistent_forward", "u < LAYERS", range(_LAYERS)),
     RoundsRule("layers", "u < LAYERS", range(_LAYERS))),
    _FORWARD_CONDITIONS, _effect, _phase,
)  # fmt: skip
BACKWARD = Rules(
    "backward.cu", THREADS, (*_COMMON_LOOPS, *_BACKWARD_LOOPS),
    (RoundsRule("block_backward", "u >= -1", range(_LAYERS - 1, -2, -1)),),
    _BACKWARD_CONDITIONS, _effect, _phase,
)  # fmt: skip
