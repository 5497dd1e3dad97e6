"""The persistent backbone's kernels, run on emulated processors, against the network in fp64."""

import statistics

import emulator
import pytest
import torch
from emulator.backbone import How, library
from emulator.runs import (
    Setting,
    autocast,
    error,
    exact,
    kernels_run,
    maps_of,
    reference,
    run,
)

from lion_fast.kernels.dense.plan import Plan
from lion_fast.kernels.persistent.pack import tables
from lion_fast.kernels.persistent.plan import PersistentPlan

pytestmark = emulator.needs_compiler

PAPER = Setting(side=32, block_layers=6)
SMALL = Setting()
# Of these every access is looked at: bounds, unwritten values, races.
CHECKED = {
    "16x16": SMALL,
    "24x24, three images, padded stem": Setting(3, 24, 20, 8, 2, channels_last=False),
    "growth 16, fp16": Setting(2, 16, 40, 16, 2, torch.float16),
    "twelve layers, an odd stem": Setting(2, 16, 23, 8, 12),
}
# Maps in memory, and programs that go through their images.
IN_TURN = {
    "three images, two programs": Setting(3, 24, 20, 8, 2, channels_last=False, programs=2),
    "growth 16, fp16, one program": Setting(2, 16, 40, 16, 2, torch.float16, programs=1),
}
DEEP = Setting(2, 16, 24, 16, 12, programs=1)
SETTINGS = {
    "the paper's": PAPER,
    "the paper's, fp16": PAPER._replace(dtype=torch.float16),
    **CHECKED,
    "growth 16, twelve layers": DEEP,
}
ROUNDING = {torch.bfloat16: 2**-9, torch.float16: 2**-12}


def how_of(setting):
    return How(is_checked=setting in CHECKED.values())


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_maps_and_taps_are_as_exact_as_the_references(setting):
    found, truth = kernels_run(setting, how_of(setting)).out, exact(setting)
    stock, _ = reference(setting)
    for ours, theirs, right in zip(found[:3], stock, truth.pooled, strict=True):
        assert error(ours, right) <= 1.25 * error(theirs, right) + ROUNDING[setting.dtype] / 4
    for (maps, gap), right in zip(maps_of(setting, found), truth.maps, strict=True):
        assert error(maps, right) < 8 * ROUNDING[setting.dtype]
        assert (gap == 0).all()


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_statistics_are_those_of_the_maps(setting):
    out = kernels_run(setting, how_of(setting)).out
    at = 0
    for b, (maps, _gap) in enumerate(maps_of(setting, out)):
        block = setting.plan.blocks[b]
        mean, var = out.statistics[at : at + 2 * block.padded_channels].view(2, -1)
        at += 2 * block.padded_channels
        came, gap = block.in_channels, block.padded_in
        exact_var, exact_mean = torch.var_mean(maps.double(), (0, 2, 3), correction=0)
        for found, right in ((mean, exact_mean), (var, exact_var)):
            found = torch.cat([found[:came], found[gap:]]).double()
            torch.testing.assert_close(found, right, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_every_gradient_is_exact_but_for_rounding_at_the_maps_that_were_made(setting):
    found = kernels_run(setting, how_of(setting))
    maps = [maps for maps, _gap in maps_of(setting, found.out)]
    truth = exact(setting, maps).grads
    errors = [error(ours, right) for ours, right in zip(found.grads, truth, strict=True)]
    assert max(errors) < 8 * ROUNDING[setting.dtype], errors


def test_gradients_of_a_step_err_as_the_references_do():
    found, truth = kernels_run(PAPER, How()).grads, exact(PAPER).grads
    _, stock = reference(PAPER)
    ours = [error(a, b) for a, b in zip(found, truth, strict=True)]
    theirs = [error(a, b) for a, b in zip(stock, truth, strict=True)]
    # Two images: where few ReLUs near zero decide otherwise than fp64's, either may be luckier.
    assert statistics.median(ours) <= 1.25 * statistics.median(theirs)


@pytest.mark.slow
def test_the_median_gradient_of_eight_images_errs_at_most_as_autocasts():
    setting = PAPER._replace(batch=8)
    found, truth, stock = run(setting).grads, exact(setting).grads, autocast(setting)
    ours = [error(a, b) for a, b in zip(found, truth, strict=True)]
    theirs = [error(a, b) for a, b in zip(stock, truth, strict=True)]
    assert statistics.median(ours) <= statistics.median(theirs)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_order_of_threads_gives_the_same_bits(seed):
    first, other = kernels_run(SMALL, How(is_checked=True)), run(SMALL, How(seed, is_checked=True))
    for a, b in zip([*first.out, *first.grads], [*other.out, *other.grads], strict=True):
        assert torch.equal(a, b)


def test_the_papers_network_gives_the_same_bits_in_another_order():
    first, other = kernels_run(PAPER, How()), run(PAPER, How(seed=5))
    for a, b in zip([*first.out, *first.grads], [*other.out, *other.grads], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("setting", IN_TURN.values(), ids=IN_TURN)
def test_images_in_turn_give_the_same_bits(setting):
    checked = How(is_checked=True)
    first, other = kernels_run(setting._replace(programs=None), checked), run(setting, checked)
    for a, b in zip([*first.out, *first.grads], [*other.out, *other.grads], strict=True):
        assert torch.equal(a, b)


def test_words_of_a_large_batch_are_merged_in_stretches(monkeypatch):
    setting = Setting(33, block_layers=1, programs=3)
    whole = PersistentPlan.definitions.fget
    found = run(setting)
    monkeypatch.setattr(
        PersistentPlan, "definitions", property(lambda sizes: {**whole(sizes), "STRETCH": 1})
    )
    other = run(setting)
    for a, b in zip([*found.out, *found.grads], [*other.out, *other.grads], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("setting", [*SETTINGS.values(), *IN_TURN.values()], ids=str)
def test_sizes_are_those_of_the_sources(setting):
    sizes, table = setting.sizes, tables(setting.plan, True)
    is_checked = how_of(setting).is_checked or setting in IN_TURN.values()
    kernels = library(sizes, setting.dtype, is_checked)
    expected = {
        "forward_shared": sizes.forward_shared,
        "backward_shared": sizes.backward_shared,
        "columns": sizes.num_columns,
        "words": sizes.num_words,
        "maps": sizes.num_maps,
        "scratch_groups": sizes.scratch_groups,
        "scratch_tiles": sizes.scratch_tiles,
        "image_bytes": sizes.image_bytes,
        "forward_halves": table.num_forward,
        "backward_halves": table.halves.numel() - table.num_forward,
    }
    assert {name: kernels.constant(f"size_{name}") for name in expected} == expected
    assert table.gradient.numel() == sizes.num_columns
    assert table.affine.numel() == sizes.num_affine


@pytest.mark.parametrize("channels_last", [False, True])
def test_every_parameter_is_read_and_gets_its_gradient_once(channels_last):
    plan = Plan(2, 32, 32, 20, 16, 3)
    table = tables(plan, channels_last)
    for indices in (table.gradient, table.affine, table.halves[: table.num_forward]):
        indices = indices[indices >= 0]
        assert indices.unique().numel() == indices.numel()
    gradients = table.gradient[table.gradient >= 0].sort().values
    assert torch.equal(gradients, torch.arange(gradients.numel(), dtype=torch.int32))


def test_a_launch_that_was_cut_off_leaves_nothing_to_the_next():
    from emulator import Fault

    whole = kernels_run(SMALL, How(is_checked=True))
    with pytest.raises(Fault):  # dropped in the middle: words are there, and no end
        run(SMALL, How(is_checked=True, skip=("layer.h", _line("layer.h", "synchronise();"))))
    again = run(SMALL, How(is_checked=True))
    assert all(map(torch.equal, [*whole.out, *whole.grads], [*again.out, *again.grads]))


def _line(file, text):
    lines = (emulator.SOURCES / file).read_text().splitlines()
    return next(i for i, line in enumerate(lines, 1) if text in line)
