"""UNet-DS: its taps and heads, its loss, and every initialiser on it."""

import pytest
import torch
import torch.nn.functional as F

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.init import (
    he_,
    initialize_,
    lion_dg_,
    lion_dg_report,
    log_frequencies,
    prior_bias_,
)
from lion_fast.models import DenseHeads, build_model, densenet_ds, masks_of, unet_ds

NUM_CLASSES = 5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(size=4, side=16):
    images = torch.randn(size, 3, side, side, generator=seeded(1))
    return images, torch.randint(NUM_CLASSES, (size, side, side), generator=seeded(2)).byte()


def make(method="he", width=4, **options):
    images, _ = batch(8)
    network = unet_ds(NUM_CLASSES, width)
    return initialize_(network, method, images, generator=seeded(), **options)


def aux_loss(model, images, masks):
    """Compute the auxiliary losses without code of ours."""
    total = 0.0
    for logits in model(images)[:-1]:
        y = F.interpolate(masks[:, None].float(), logits.shape[2:], mode="nearest-exact")
        total = total + F.cross_entropy(logits, y[:, 0].long())
    return total


def test_taps_are_the_decoders_maps_coarse_to_fine():
    model = unet_ds(NUM_CLASSES, width=4, stages=4)
    images, _ = batch(2, 24)
    taps = [tuple(tap.shape[1:]) for tap in model.taps(images)]
    assert taps == [(16, 6, 6), (8, 12, 12), (4, 24, 24)]
    logits = model(images)
    assert [tuple(each.shape) for each in logits] == [(2, 5, 6, 6), (2, 5, 12, 12), (2, 5, 24, 24)]
    assert isinstance(model.heads, DenseHeads) and model.heads.num_classes == NUM_CLASSES
    assert [head.output_layer.kernel_size for head in model.heads] == [(1, 1)] * 3


def test_the_network_of_the_study_has_its_size():
    assert sum(p.numel() for p in unet_ds(11).parameters()) == 272_769


def test_auxiliary_weights_are_halved_a_level_beyond_the_finest():
    weights = unet_ds(NUM_CLASSES, width=2).loss_weights(0.5)
    assert weights.tolist() == [0.25, 0.5, 1.0]
    assert densenet_ds(NUM_CLASSES).loss_weights(0.5).tolist() == [0.5, 0.5, 1.0]


def test_the_loss_is_that_of_stock_code():
    model = make().eval()
    images, masks = batch()
    masks[0, :5] = 255
    told = model.loss(images, masks, 0.5)
    wanted = 0.0
    for logits, weight in zip(model(images), (0.25, 0.5, 1.0), strict=True):
        y = F.interpolate(masks[:, None].float(), logits.shape[2:], mode="nearest-exact")
        wanted = wanted + weight * F.cross_entropy(logits, y[:, 0].long(), ignore_index=255)
    torch.testing.assert_close(told.loss, wanted)
    assert model(images, masks, 0.5).loss == told.loss
    assert model.loss(images, masks, 0.5, dice=1.0).loss > told.loss


@pytest.mark.parametrize(
    "method", ["he", "xavier", "lion_dg", "lsuv", "lion_lsuv", "rezero", "fixup"]
)
def test_every_initialiser_sets_every_weight(method):
    model = make(method)
    before = {name: p.clone() for name, p in model.named_parameters()}
    again = make(method)
    assert all(torch.equal(before[name], p) for name, p in again.named_parameters())
    zero = {name for name, p in model.named_parameters() if p.ndim > 1 and not p.any()}
    heads = {f"heads.aux.{h}.convolution.weight" for h in range(2)}
    expected = {"lion_dg": heads, "lion_lsuv": heads, "fixup": {"heads.main.convolution.weight"}}
    assert zero == expected.get(method, set())


@pytest.mark.parametrize("method", ["lion_dg", "lion_lsuv"])
def test_zeroed_heads_leave_the_backbones_gradient_zero_with_a_prior_too(method):
    model = prior_bias_(make(method), log_frequencies(torch.tensor([90, 4, 3, 2, 1])))
    aux_loss(model, *batch()).backward()
    reached = [p.grad for p in model.backbone_parameters() if p.grad is not None]
    assert len(reached) > 20 and not any(grad.any() for grad in reached)
    assert all(head.convolution.weight.grad.norm() > 1e-3 for head in model.heads.aux)


def test_lion_dg_says_what_it_zeroes_and_finds_it_by_running_too():
    model = make("lion_dg")
    known = lion_dg_report(model)
    assert [head.name for head in known.heads] == ["heads.aux.0", "heads.aux.1"]
    assert known.heads[0].parameters == (
        "heads.aux.0.convolution.weight",
        "heads.aux.0.convolution.bias",
    )

    class Other(type(model)):
        """A subclass is not known beforehand."""

    model.__class__ = Other
    ran = lion_dg_report(model, example=batch()[0])
    assert ran == known and all(head.zeroed for head in ran.heads)


def test_a_prior_is_the_bias_of_the_auxiliary_heads_alone():
    prior = log_frequencies(torch.tensor([75, 25, 0, 0, 0]))
    torch.testing.assert_close(prior.exp()[:2], torch.tensor([75, 25]) / 103)
    model = prior_bias_(he_(unet_ds(NUM_CLASSES, 4), seeded()), prior)
    assert all(torch.equal(head.convolution.bias, prior) for head in model.heads.aux)
    assert not model.heads.main.convolution.bias.any()
    same = lion_dg_(he_(unet_ds(NUM_CLASSES, 4), seeded()), bias=prior)
    assert all(torch.equal(head.convolution.bias, prior) for head in same.heads.aux)


def test_a_prior_of_other_classes_or_of_nothing_is_refused():
    with pytest.raises(UserError, match="prior is of 3 classes and the heads tell 5 apart"):
        prior_bias_(unet_ds(NUM_CLASSES, 4), torch.zeros(3))
    with pytest.raises(UserError, match="counts are"):
        log_frequencies(torch.zeros(3))


def test_masks_repeat_a_coarse_level():
    logits = torch.randn(2, 3, 4, 4, generator=seeded())
    (mask,) = masks_of([logits], (8, 8))
    assert mask.dtype == torch.uint8
    coarse = logits.argmax(1).byte()
    assert torch.equal(mask, coarse.repeat_interleave(2, 1).repeat_interleave(2, 2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arch": "densenet_ds", "dice": 1.0}, "dice is 1.0, and densenet_ds gives"),
        ({"arch": "unet_ds", "label_smoothing": 0.1}, "label_smoothing is 0.1, and unet_ds"),
        ({"arch": "unet_ds", "placement": "residual"}, "placement is 'residual', and unet_ds"),
        ({"arch": "unet_ds", "init": "gradinit"}, "init gradinit learns on one label an image"),
    ],
)
def test_what_a_network_does_not_have_is_refused_before_a_run(fields, message):
    with pytest.raises(UserError, match=message):
        build_model(TrainConfig(**fields), NUM_CLASSES, (32, 32))


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="images are 20x24 pixels, and a unet_ds of 4 stages takes"):
        build_model(TrainConfig(arch="unet_ds"), NUM_CLASSES, (20, 24))
    with pytest.raises(UserError, match="stages is 1: give at least 2"):
        unet_ds(NUM_CLASSES, stages=1)
    with pytest.raises(UserError, match="these heads give a class a pixel"):
        make().loss(*batch(), 0.5, label_smoothing=0.1)
