"""dense_supervision_loss: against fp64, stock losses and other libraries' own."""

import importlib.util
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lion_fast.kernels import dense_heads, dense_supervision_loss
from lion_fast.kernels.dense_heads import chunks, dense_supervision_loss_ref

IGNORED = 255
OPTIONS = (
    {},
    {"dice": 1.0},
    {"dice": 0.5, "batch_dice": True, "background": True, "smooth": 1.0},
    {"dice": 1.0, "class_weights": torch.tensor([0.2, 1.0, 3.0, 0.0, 1.0])},
)
SIZES_2D = ((9, 7), (5, 4), (2, 3))
SIZES_3D = ((6, 7, 5), (3, 4, 5), (1, 2, 2))


@dataclass
class Inputs:
    features: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor]
    target: Tensor
    loss_weights: Tensor

    def to(self, dtype) -> "Inputs":
        groups = (
            [t.detach().to(dtype).requires_grad_() for t in tensors]
            for tensors in (self.features, self.weights, self.biases)
        )
        return Inputs(*groups, self.target, self.loss_weights.to(dtype))

    @property
    def differentiable(self) -> list[Tensor]:
        return [*self.features, *self.weights, *self.biases]

    def losses(self, **options):
        return dense_supervision_loss(
            self.features, self.weights, self.biases, self.target, self.loss_weights, **options
        )

    def all(self, grad=1.0, **options) -> dict[str, Tensor]:
        """Return outputs and gradients by name."""
        losses = self.losses(**options)
        gradients = torch.autograd.grad(losses.loss * grad, self.differentiable)
        names = [f"d_{n}[{h}]" for n in ("map", "weight", "bias") for h in range(len(self.weights))]
        return dict(losses._asdict()) | dict(zip(names, gradients, strict=True))


def make_inputs(sizes=SIZES_2D, num_classes=5, batch_size=3, target_dtype=torch.uint8, seed=0):
    """Maps fine to coarse of 6, 9 and 4 channels; a fifth of the labels is ignored."""
    g = torch.Generator().manual_seed(seed)
    channels = (6, 9, 4)[: len(sizes)]
    target = torch.randint(num_classes, (batch_size, *sizes[0]), generator=g)
    target[torch.rand(target.shape, generator=g) < 0.2] = (
        IGNORED if target_dtype != torch.int8 else -1
    )
    return Inputs(
        [
            torch.randn(batch_size, c, *size, generator=g).requires_grad_()
            for c, size in zip(channels, sizes, strict=True)
        ],
        [torch.randn(num_classes, c, generator=g).div(c**0.5).requires_grad_() for c in channels],
        [torch.randn(num_classes, generator=g).requires_grad_() for _ in channels],
        target.to(target_dtype),
        torch.tensor([1.0, 0.5, 0.25])[: len(sizes)],
    )


def assert_near(ours, truth, tolerance):
    for name, value in truth.items():
        mine, wanted = ours[name].detach().double(), value.detach().double()
        absolute = tolerance * float(wanted.nan_to_num().abs().max())
        torch.testing.assert_close(
            mine, wanted, rtol=tolerance, atol=absolute, equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip


@pytest.fixture(params=["one block", "many blocks", "several images a block"])
def workspace(request, monkeypatch):
    """Cut the maps into blocks of every kind: the largest have 63 or 210 positions."""
    least = {"one block": 10**6, "many blocks": 16, "several images a block": 130}[request.param]
    monkeypatch.setattr(chunks, "_LEAST_POSITIONS", least)
    monkeypatch.setattr(chunks, "_WORKSPACE_BYTES", {})
    monkeypatch.setattr(chunks, "_DEFAULT_WORKSPACE", 0)


@pytest.mark.parametrize("sizes", [SIZES_2D, SIZES_3D], ids=["2-D", "3-D"])
@pytest.mark.parametrize("options", OPTIONS, ids=["ce", "dice", "batch dice", "class weights"])
def test_values_and_gradients_are_those_of_fp64_autograd(sizes, options, workspace):
    inputs = make_inputs(sizes)
    truth = inputs.to(torch.float64).all(grad=3.0, **options, impl="reference")
    assert_near(inputs.all(grad=3.0, **options), truth, 3e-6)
    assert_near(inputs.to(torch.float64).all(grad=3.0, **options), truth, 1e-13)


def test_the_reference_is_stock_cross_entropy_and_dice_spelled_out():
    inputs = make_inputs()
    class_weights = torch.tensor([0.2, 1.0, 3.0, 0.5, 1.0])
    told = inputs.losses(dice=0.7, class_weights=class_weights, impl="reference")
    for h, feature in enumerate(inputs.features):
        size = feature.shape[2:]
        y = F.interpolate(inputs.target[:, None].double(), size=size, mode="nearest-exact")
        y = y[:, 0].long()
        logits = F.conv2d(feature, inputs.weights[h][..., None, None], inputs.biases[h])
        ce = F.cross_entropy(logits, y, class_weights, ignore_index=IGNORED)
        valid = y != IGNORED
        dice = torch.zeros(len(y), 5)
        for b in range(len(y)):
            for k in range(5):
                q, is_k = logits.softmax(1)[b, k][valid[b]], (y[b] == k)[valid[b]]
                dice[b, k] = (2 * q[is_k].sum() + 1e-5) / (q.sum() + is_k.sum() + 1e-5)
        torch.testing.assert_close(told.per_head[h], ce + 0.7 * (1 - dice[:, 1:].mean()))
        torch.testing.assert_close(told.dice[h], dice.mean(0))
        foreground = valid & (y > 0)
        assert told.valid[h] == foreground.sum()
        assert told.correct[h] == ((logits.argmax(1) == y) & foreground).sum()
    torch.testing.assert_close(told.loss, (told.per_head * inputs.loss_weights).sum())


@pytest.mark.parametrize("mode", ["nearest-exact", "nearest"])
@pytest.mark.parametrize("size", [(8, 12), (5, 7), (3, 4), (1, 1)])
def test_a_level_takes_the_labels_that_interpolate_takes(mode, size):
    target = torch.randint(200, (2, 8, 12), dtype=torch.int16)
    wanted = F.interpolate(target[:, None].double(), size=size, mode=mode)[:, 0]
    found = dense_heads.options.labels_of_level(target, size, mode)
    assert found.dtype == torch.int16 and torch.equal(found.double(), wanted)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_type_give_the_same_bits(dtype):
    index = -1 if dtype == torch.int8 else IGNORED
    told = make_inputs(target_dtype=dtype).all(dice=1.0, ignore_index=index)
    for name, value in make_inputs(target_dtype=torch.int64).all(dice=1.0).items():
        assert torch.equal(told[name], value), name


def test_maps_of_any_layout_give_the_same_and_keep_channels_last():
    inputs = make_inputs()
    truth = inputs.all(dice=1.0)
    layouts = (
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: F.pad(x, (1, 2, 3, 0))[:, :, 3:, 1:-2],
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    )
    for layout in layouts:
        maps = [layout(f.detach()).requires_grad_() for f in inputs.features]
        told = replace(inputs, features=maps).all(dice=1.0)
        assert_near(told, truth, 1e-6)
    last = [layouts[0](f.detach()).requires_grad_() for f in inputs.features]
    replace(inputs, features=last).losses().loss.backward()
    assert all(f.grad.is_contiguous(memory_format=torch.channels_last) for f in last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_maps_are_computed_in_fp32(dtype):
    inputs = make_inputs()
    half = replace(
        inputs, features=[f.detach().to(dtype).requires_grad_() for f in inputs.features]
    )
    exact = replace(half, features=[f.detach().double().requires_grad_() for f in half.features])
    exact = exact.to(torch.float64)
    told, truth = half.all(dice=1.0), exact.all(dice=1.0, impl="reference")
    assert told["loss"].dtype == torch.float32 and told["d_map[0]"].dtype == dtype
    exactly = {name: truth[name] for name in ("loss", "dice", "d_weight[1]")}
    assert_near(told, exactly, 3e-6)
    assert_near(told, {"d_map[1]": truth["d_map[1]"]}, 2 * torch.finfo(dtype).eps)
    with torch.autocast("cpu", torch.bfloat16):
        again = half.all(dice=1.0)
    assert all(torch.equal(again[name], value) for name, value in told.items())


def test_a_convolutions_weights_and_a_missing_bias_are_taken():
    inputs = make_inputs()
    convolutions = [w.detach()[..., None, None].requires_grad_() for w in inputs.weights]
    told = dense_supervision_loss(
        inputs.features, convolutions, [None] * 3, inputs.target, inputs.loss_weights
    )
    told.loss.backward()
    zero = [torch.zeros(5, requires_grad=True) for _ in inputs.biases]
    truth = replace(inputs, biases=zero).all()
    assert torch.equal(told.loss, truth["loss"])
    assert torch.equal(convolutions[1].grad.flatten(1), truth["d_weight[1]"])


def test_a_head_of_weight_0_gets_gradients_of_0_and_no_none():
    inputs = make_inputs()
    told = replace(inputs, loss_weights=torch.tensor([1.0, 0.0, 0.5])).all(dice=1.0)
    for name in ("d_map[1]", "d_weight[1]", "d_bias[1]"):
        assert torch.equal(told[name], torch.zeros_like(told[name]))
    assert told["per_head"][1] > 0 and told["d_weight[2]"].any()


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_images_that_are_ignored_whole_add_nothing_and_give_no_nan(impl):
    inputs = make_inputs()
    inputs.target[0] = IGNORED
    told = inputs.all(dice=1.0, impl=impl)
    assert all(value.isfinite().all() for value in told.values())
    assert not told["d_map[0]"][0].any() and told["d_map[0]"][1].any()
    inputs.target[:] = IGNORED
    told = inputs.all(dice=1.0, impl=impl)
    assert told["loss"] == 0 and not told["valid"].any()
    assert not any(value.any() for name, value in told.items() if name.startswith("d_"))


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("label", [5, 254])
def test_a_label_out_of_range_makes_the_loss_nan(impl, label):
    inputs = make_inputs()
    inputs.target[1, 4, 3] = label
    told = inputs.losses(impl=impl)
    assert told.loss.isnan() and told.per_head[0].isnan()


def test_infinite_maps_under_ignored_positions_hurt_nothing():
    inputs = make_inputs(sizes=SIZES_2D[:1])
    spoiled = inputs.features[0].detach().clone()
    spoiled.masked_fill_((inputs.target == IGNORED)[:, None], torch.inf)
    told = replace(inputs, features=[spoiled.requires_grad_()]).losses(dice=1.0)
    assert torch.equal(told.loss, inputs.losses(dice=1.0).loss)


def test_zero_weights_send_a_map_no_gradient_for_any_bias():
    """LION-DG's property, with Dice and a prior bias too."""
    inputs = make_inputs()
    zeroed = replace(inputs, weights=[torch.zeros_like(w).requires_grad_() for w in inputs.weights])
    told = zeroed.all(dice=1.0)
    assert not any(told[f"d_map[{h}]"].any() for h in range(3))
    assert all(told[f"d_weight[{h}]"].any() for h in range(3))


def test_the_same_inputs_give_the_same_bits():
    first, second = (make_inputs().all(dice=1.0) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_op_passes_torchs_checks_and_compiles_whole(poisoned_memory):
    inputs = make_inputs(sizes=SIZES_2D[:2])
    inputs.loss_weights = inputs.loss_weights[:2]
    arguments = (inputs.features, inputs.weights, inputs.biases, inputs.target, inputs.loss_weights)
    for dice in (0.0, 1.0):
        torch.library.opcheck(
            torch.ops.lion_fast.dense_supervision_loss.default,
            (*arguments, torch.ones(5), IGNORED, dice, False, False, 1e-5, "nearest-exact"),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )
    graphs = []
    compiled = torch.compile(
        lambda: inputs.losses(dice=1.0).loss,
        backend=lambda graph, _: graphs.append(graph) or graph.forward,
        fullgraph=True,
    )
    assert torch.equal(compiled(), inputs.losses(dice=1.0).loss) and len(graphs) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.zeros(3, 9, 7)}, "target is .* float32: give integers"),
        ({"target": torch.zeros(2, 9, 7, dtype=torch.uint8)}, r"features\[0\] is .* of 2 images"),
        ({"loss_weights": torch.ones(2)}, r"loss_weights is \(2,\) float32: give \(3,\)"),
        ({"biases": [torch.zeros(5)] * 2}, "3 features, 3 weights, 2 biases"),
        ({"weights": [torch.zeros(5, 6)] * 3}, r"weights\[1\] is \(5, 6\) float32: give \(5, 9\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(make_inputs(), **change).losses()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"impl": "triton"}, "impl is 'triton': take one of auto, chunked, reference"),
        ({"sampling": "bilinear"}, "sampling is 'bilinear'"),
        ({"dice": -1.0}, "dice is -1.0"),
        ({"class_weights": torch.ones(4)}, r"class_weights is \(4,\) float32: give \(5,\)"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_inputs().losses(**options)


def test_the_reference_by_its_name_is_the_same():
    inputs = make_inputs()
    told = dense_supervision_loss_ref(
        inputs.features, inputs.weights, inputs.biases, inputs.target, inputs.loss_weights, dice=1.0
    )
    assert torch.equal(told.loss, inputs.losses(dice=1.0, impl="reference").loss)


def logits_and_targets(inputs):
    convolve = F.conv2d if inputs.target.ndim == 3 else F.conv3d
    for feature, weight, bias in zip(inputs.features, inputs.weights, inputs.biases, strict=True):
        matrix = weight.reshape(*weight.shape, *[1] * (feature.ndim - 2))
        y = dense_heads.options.labels_of_level(inputs.target, feature.shape[2:], "nearest-exact")
        yield convolve(feature, matrix, bias), y[:, None].long()


@pytest.mark.skipif(not importlib.util.find_spec("nnunetv2"), reason="needs nnunetv2")
@pytest.mark.parametrize("sizes", [SIZES_2D, SIZES_3D], ids=["2-D", "3-D"])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_the_loss_is_nnunets_own_but_for_a_constant(sizes, batch_dice):
    """nnU-Net counts minus Dice, and halves the weights a level with the lowest 0."""
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    options = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    theirs = DC_and_CE_loss(
        options, {}, ignore_label=IGNORED, dice_class=MemoryEfficientSoftDiceLoss
    )
    weights = torch.tensor([1.0, 0.5, 0.0])
    weights /= weights.sum()
    inputs = replace(make_inputs(sizes), loss_weights=weights)
    wrapped = DeepSupervisionWrapper(theirs, weights.tolist())
    truth = wrapped(*map(list, zip(*logits_and_targets(inputs), strict=True)))
    told = inputs.losses(dice=1.0, batch_dice=batch_dice)
    assert float((told.loss - 1 - truth).detach().abs()) < 1e-5
    ours, others = (
        torch.autograd.grad(loss, inputs.differentiable, materialize_grads=True)
        for loss in (told.loss, truth)
    )
    for mine, other in zip(ours, others, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(
    not importlib.util.find_spec("dynamic_network_architectures"),
    reason="needs dynamic_network_architectures",
)
@pytest.mark.skipif(not importlib.util.find_spec("nnunetv2"), reason="needs nnunetv2")
def test_the_three_lines_for_nnunet_give_its_loss():
    """Those of docs/networks.md."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
    from torch import nn

    network = PlainConvUNet(
        1, 3, (4, 6, 8), nn.Conv2d, 3, (1, 2, 2), 1, 5, 1, conv_bias=True, deep_supervision=True
    )
    weights = torch.tensor([1.0, 0.0])
    options = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    theirs = DC_and_CE_loss(options, {}, dice_class=MemoryEfficientSoftDiceLoss)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 16, 16, generator=generator)
    y = torch.randint(5, (2, 1, 16, 16), generator=generator)
    levels = [y, F.interpolate(y.float(), (8, 8), mode="nearest-exact").long()]
    truth = DeepSupervisionWrapper(theirs, weights.tolist())(network(x), levels)

    heads = nn.ModuleList(network.decoder.seg_layers[::-1])
    network.decoder.seg_layers = nn.ModuleList(nn.Identity() for _ in heads)
    told = dense_supervision_loss(
        network(x), [h.weight for h in heads], [h.bias for h in heads], y[:, 0], weights, dice=1.0
    )
    assert float((told.loss - weights.sum() - truth).detach().abs()) < 1e-5


@pytest.mark.skipif(not importlib.util.find_spec("monai"), reason="needs monai")
@pytest.mark.parametrize("sizes", [SIZES_2D, SIZES_3D], ids=["2-D", "3-D"])
@pytest.mark.parametrize("background", [False, True])
def test_the_loss_is_monais_own(sizes, background):
    from monai.losses import DeepSupervisionLoss, DiceCELoss

    theirs = DeepSupervisionLoss(
        DiceCELoss(
            softmax=True, to_onehot_y=True, include_background=background,
            smooth_nr=1e-5, smooth_dr=1e-5,
        ),
        weight_mode="exp",
    )  # fmt: skip
    inputs = make_inputs(sizes)
    inputs.target[inputs.target == IGNORED] = 0
    (logits, targets) = map(list, zip(*logits_and_targets(inputs), strict=True))
    truth = theirs(logits, targets[0].float())
    told = inputs.losses(dice=1.0, background=background, sampling="nearest-exact")
    assert float((told.loss - truth).detach().abs()) < 1e-5
