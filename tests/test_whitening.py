"""A whitened stem: what it makes of patches, what it leaves alone, and which stems it refuses."""

import copy
from dataclasses import replace

import pytest
import torch
from photographs import photographs, seeded
from torch import nn

from lion_fast import TrainConfig, UserError, initialize_, load_run, train, whiten_stem_
from lion_fast.init import METHODS, whitening
from lion_fast.models import DeeplySupervised, densenet_ds, resnet_ds

MODELS = {
    "densenet": lambda: densenet_ds(growth_rate=4, block_layers=1),
    "side_tap": lambda: resnet_ds(base_width=24),
    "residual": lambda: resnet_ds(placement="residual", base_width=24),
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=list(MODELS))


def inner_outputs(stem, images):
    """Return the stem's outputs (F, places) where padding does not reach."""
    outputs = torch.nn.functional.conv2d(images.double(), stem.weight.detach().double())
    return outputs.transpose(0, 1).flatten(1)


@every_model
def test_outputs_have_unit_variance_and_are_uncorrelated(build):
    images, model = photographs(), build()
    assert whiten_stem_(model, images, 24) is model
    covariance = inner_outputs(model.stem, images)[:24].cov(correction=0)
    torch.testing.assert_close(covariance, torch.eye(24, dtype=torch.float64), atol=1e-3, rtol=0)


def test_filters_are_orthogonal_and_the_leading_ones_come_first():
    model = whiten_stem_(MODELS["densenet"](), photographs(), 24)
    filters = model.stem.weight.detach().flatten(1).double()
    norms = filters.norm(dim=1)
    assert (norms[1:] > norms[:-1]).all()  # of falling variance, so ever more to make up
    directions = filters / norms[:, None]
    torch.testing.assert_close(
        directions @ directions.T, torch.eye(24, dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_the_largest_weight_of_every_filter_is_positive():
    filters = whitening.whitening_filters(photographs(), 3, 24).flatten(1)
    assert (filters.amax(1) == filters.abs().amax(1)).all()


def test_the_same_seed_gives_the_same_filters_and_whitening_twice_changes_nothing():
    images, model = photographs(600), MODELS["densenet"]()
    assert 600 * 6 * 6 > whitening.NUM_PATCHES  # so that some are drawn
    once = whiten_stem_(model, images, generator=seeded(3)).stem.weight.detach().clone()
    again = whiten_stem_(model, images, generator=seeded(3)).stem.weight.detach()
    assert torch.equal(once, again)
    other = whiten_stem_(model, images, generator=seeded(4)).stem.weight.detach()
    assert not torch.equal(once, other)


def test_all_patches_are_taken_or_as_many_as_the_limit():
    assert whitening._patches(photographs(), 3, seeded(), 50).shape == (50, 3, 3, 3)
    assert whitening._patches(photographs(1, side=5), 3, None, 50).shape == (9, 3, 3, 3)


def test_patches_are_those_that_a_convolution_sees():
    images = photographs(3, side=6)  # 48 patches
    weight = torch.randn(5, 3, 3, 3, generator=seeded())
    products = whitening._patches(images, 3, None, 50).float().flatten(1) @ weight.flatten(1).T
    outputs = torch.nn.functional.conv2d(images, weight).permute(0, 2, 3, 1).reshape(-1, 5)
    torch.testing.assert_close(products, outputs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_with_a_whitened_stem_and_sets_all_else_as_without(method):
    images, labels = photographs(), torch.arange(256) % 10
    plain, whitened = MODELS["densenet"](), MODELS["densenet"]()
    if method in ("fixup", "rezero"):
        plain, whitened = resnet_ds(base_width=8), resnet_ds(base_width=8)
    initialize_(plain, method, images, labels, seeded())
    initialize_(whitened, method, images, labels, seeded(), whiten=8)
    before, after = plain.state_dict(), whitened.state_dict()
    stem = after.pop("stem.weight")
    outputs = inner_outputs(whitened.stem, images)[:8]
    torch.testing.assert_close(
        outputs.var(1, correction=0), torch.ones(8, dtype=torch.float64), atol=1e-3, rtol=0
    )
    assert torch.equal(stem[8:], before.pop("stem.weight")[8:])
    assert all(torch.equal(before[name], value) for name, value in after.items())


def test_modes_statistics_and_the_random_state_are_left_as_they_were():
    model, images = MODELS["side_tap"]().eval(), photographs()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    whiten_stem_(model, images, generator=seeded())
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)
    changed = [n for n, v in model.state_dict().items() if not torch.equal(v, before[n])]
    assert changed == ["stem.weight"]


class Stem(DeeplySupervised):
    """A stem, and one tap of what it gives."""

    def __init__(self, stem, channels=24, *, centred=False):
        super().__init__()
        self.stem, self.centred = stem, centred
        self.attach_heads([channels, channels], 10)

    def taps(self, images):
        taken = images - 1 if self.centred else images
        x = self.stem(taken)
        return [x, x]


def test_a_stem_of_5x5_with_a_bias_and_a_stride_is_whitened_and_its_bias_stays():
    images = photographs()
    model = whiten_stem_(Stem(nn.Conv2d(3, 24, 5, stride=2)), images, 10)
    bias = model.stem.bias.detach().clone()
    whiten_stem_(model, images, 10)
    assert torch.equal(model.stem.bias, bias)
    variances = inner_outputs(model.stem, images)[:10].var(1, correction=0)
    torch.testing.assert_close(variances, torch.ones(10, dtype=torch.float64), atol=1e-3, rtol=0)


REFUSED = {
    "25 filters to whiten, of a stem with 24 outputs": (nn.Conv2d(3, 24, 3), 25, {}),
    "4 filters to whiten, of a stem with 24 outputs on patches of 3 values: give 1 to 3": (
        nn.Conv2d(3, 24, 1), 4, {},
    ),
    "0 filters to whiten": (nn.Conv2d(3, 24, 3), 0, {}),
    "3x1 convolution": (nn.Conv2d(3, 24, (3, 1)), 8, {}),
    "dilation 2": (nn.Conv2d(3, 24, 3, dilation=2), 8, {}),
    "3 groups": (nn.Conv2d(3, 24, 3, groups=3), 8, {}),
    "the stem is a ConvTranspose2d": (nn.ConvTranspose2d(3, 24, 3), 8, {}),
    "does not read the images themselves": (nn.Conv2d(3, 24, 3), 8, {"centred": True}),
    "the stem is a Linear": (nn.Upsample(scale_factor=2), 8, {"channels": 3}),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_other_stems_are_refused_and_left_as_they_were(message):
    stem, filters, options = REFUSED[message]
    model = Stem(stem, **options)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=message):
        whiten_stem_(model, photographs(), filters)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_model_without_a_layer_with_weights_is_refused():
    with pytest.raises(UserError, match="BatchNorm2d runs no layer with weights"):
        whiten_stem_(nn.BatchNorm2d(3), photographs(), 8)


def grey():
    return photographs().mean(1, keepdim=True).expand(-1, 3, -1, -1)


@pytest.mark.parametrize(
    "images, message",
    [
        (grey(), "vary in 9 directions: give at most 9"),
        (photographs() * float("nan"), "NaN or infinity"),
        (photographs(1), "give at least 2"),
        (photographs().mul(99).to(torch.uint8), "normalised ones"),
        (photographs()[0], "normalised ones"),
    ],
)
def test_images_that_cannot_be_whitened_are_refused_before_any_weight_is_set(images, message):
    for call in (
        lambda model: whiten_stem_(model, images, 24),
        lambda model: initialize_(model, "he", images, whiten=24),
    ):
        model = MODELS["densenet"]()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(UserError, match=message):
            call(model)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_whitening_without_images_is_refused():
    with pytest.raises(UserError, match="whitening looks at data"):
        initialize_(MODELS["densenet"](), "he", whiten=8)


SMALL = TrainConfig(
    growth_rate=2, block_layers=1, batch_size=16, max_steps=2, device="cpu", init="he",
    checkpoint_every=0,
)  # fmt: skip


def test_a_run_starts_from_a_stem_that_whitens_its_training_images(tmp_path):
    plain = load_run(train(replace(SMALL, lr=1e-30, out=tmp_path)).run).model
    config = replace(SMALL, lr=1e-30, whiten=9, out=tmp_path)
    whitened = load_run(train(config).run).model
    norms = whitened.stem.weight.detach().flatten(1).norm(dim=1)
    assert (norms[1:9] > norms[:8]).all()
    assert torch.equal(whitened.stem.weight[9:], plain.stem.weight[9:])


def test_grey_digits_cannot_be_whitened_in_24_directions(tmp_path):
    with pytest.raises(UserError, match="vary in 9 directions"):
        train(replace(SMALL, whiten=24, out=tmp_path))
