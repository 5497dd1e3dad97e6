"""Deeply-supervised networks: sizes, seams, and what a compiled step sees."""

import inspect
import textwrap
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import multiprocessing, nn

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.init import METHODS, gradinit_, he_, initialize_, lion_dg_
from lion_fast.models import DeeplySupervised, build_model, densenet_ds, resnet_ds

SMALL = {
    "densenet": lambda k=10: densenet_ds(k, growth_rate=4, block_layers=2),
    "side_tap": lambda k=10: resnet_ds(k, base_width=8),
    "residual": lambda k=10: resnet_ds(k, "residual", base_width=8),
}
every_model = pytest.mark.parametrize("name", SMALL)


def batch(size=4, side=(8, 8), num_classes=10):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, *side, generator=generator)
    return images, torch.randint(num_classes, (size,), generator=generator)


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


def test_densenet_ds_has_the_papers_size():
    model = densenet_ds()
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert count(convolutions) == 76_752
    assert [head.linear.weight.numel() for head in model.heads.aux] == [720, 840]
    assert count(model.parameters()) == 81_678


def test_densenet_ds_blocks_have_the_sizes_that_its_docstring_states():
    model = densenet_ds()
    sizes = [
        count(m.weight for m in part.modules() if isinstance(m, nn.Conv2d))
        for part in (model.stem, *model.blocks, *model.transitions)
    ]
    assert sizes == [648, 19_008, 24_192, 26_784, 2_592, 3_528]


@pytest.mark.parametrize("placement", ["side_tap", "residual"])
def test_resnet_ds_is_resnet18_plus_three_heads(placement):
    model = resnet_ds(placement=placement)
    assert count(model.aux_parameters()) == 10 * (64 + 128 + 256) + 30
    assert count(model.parameters()) == 11_173_962 + count(model.aux_parameters())


def test_both_placements_have_the_same_parameters_under_the_same_names():
    side, residual = SMALL["side_tap"]().state_dict(), SMALL["residual"]().state_dict()
    assert {k: v.shape for k, v in side.items()} == {k: v.shape for k, v in residual.items()}


@every_model
def test_parameters_divide_into_backbone_aux_and_main(name):
    model = SMALL[name]()
    parts = [model.backbone_parameters(), model.aux_parameters(), model.heads.main.parameters()]
    flat = [parameter for part in parts for parameter in part]
    assert len(flat) == len(set(flat))
    assert set(flat) == set(model.parameters())


@every_model
def test_state_dict_holds_stock_layers_only(name):
    model = SMALL[name]()
    stock = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    expected = {
        f"{prefix}.{key}"
        for prefix, module in model.named_modules()
        if isinstance(module, stock)
        for key in module.state_dict()
    }
    assert set(model.state_dict()) == expected
    assert model.state_dict()["heads.main.linear.weight"].shape[0] == 10


@every_model
@pytest.mark.parametrize("side", [(8, 8), (16, 16), (32, 32), (9, 13)])
@pytest.mark.parametrize("num_classes", [2, 100])
def test_any_size_from_8x8_and_any_class_count_train(name, side, num_classes):
    model = SMALL[name](num_classes)
    images, target = batch(side=side, num_classes=num_classes)
    logits = model(images)
    assert [z.shape for z in logits] == [(4, num_classes)] * len(list(model.heads))
    model.loss(images, target, 0.3).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_model
def test_taps_have_the_channels_that_their_heads_read(name):
    model = SMALL[name]()
    taps = model.taps(batch()[0])
    channels = [head.linear.in_features for head in model.heads]
    assert [tap.shape[1] for tap in taps] == channels
    assert len(taps) == len(model.heads.aux) + 1


@every_model
def test_taps_keep_channels_last(name):
    model = SMALL[name]().to(memory_format=torch.channels_last)
    images = batch()[0].contiguous(memory_format=torch.channels_last)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in model.taps(images))


@every_model
def test_loss_is_main_plus_weighted_auxiliary_cross_entropy_of_the_logits(name):
    model = SMALL[name]()
    images, target = batch(16)
    with torch.no_grad():
        per_head = [F.cross_entropy(z, target, label_smoothing=0.1) for z in model(images)]
        loss = model.loss(images, target, 0.3, label_smoothing=0.1)
    torch.testing.assert_close(loss.per_head, torch.stack(per_head))
    torch.testing.assert_close(loss.loss, per_head[-1] + 0.3 * sum(per_head[:-1]))


@every_model
def test_aux_weight_is_a_float_or_a_tensor(name):
    model = SMALL[name]()
    expected = torch.tensor([0.25] * len(model.heads.aux) + [1.0])
    assert torch.equal(model.loss_weights(0.25), expected)
    assert torch.equal(model.loss_weights(torch.tensor(0.25)), expected)
    assert model.loss_weights(torch.tensor(0.25)).dtype == torch.float32


def test_a_dense_block_hands_its_input_on_unchanged():
    block = densenet_ds().blocks[0]
    x = torch.randn(2, 24, 8, 8)
    out = block(x)
    assert out.shape[1] == 72
    assert torch.equal(out[:, :24], x)


def test_heads_in_the_path_embed_their_own_logits():
    model = he_(SMALL["residual"]()).eval()
    images = batch()[0]
    linear = model.heads.aux[0].linear
    outputs = []
    hook = linear.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(images)
    hook.remove()
    in_path, logits = outputs
    assert in_path.shape == (4, 8, 8, 10)
    torch.testing.assert_close(in_path.mean((1, 2)), logits)


@every_model
def test_wrong_images_are_refused_in_one_line(name):
    model = SMALL[name]()
    with pytest.raises(UserError, match="7x32 pixels.*8x8"):
        model(torch.zeros(2, 3, 7, 32))
    with pytest.raises(UserError, match=r"\(2, 1, 8, 8\)"):
        model(torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: densenet_ds(1), "num_classes is 1"),
        (lambda: densenet_ds(growth_rate=0), "growth_rate is 0"),
        (lambda: densenet_ds(block_layers=0), "block_layers is 0"),
        (lambda: resnet_ds(base_width=0), "base_width is 0"),
        (lambda: resnet_ds(placement="side"), "placement is 'side'.*side_tap, residual"),
    ],
)
def test_impossible_sizes_are_refused_by_name(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_build_model_follows_the_config():
    model = build_model(TrainConfig(growth_rate=4, block_layers=1), 7, (16, 16))
    assert model.blocks[0].layers[0].conv.out_channels == 4
    assert model.heads.main.linear.out_features == 7
    config = TrainConfig(arch="resnet_ds", placement="residual", base_width=8)
    assert build_model(config, 10, (8, 9)).placement == "residual"


def test_build_model_refuses_what_cannot_be_built():
    with pytest.raises(UserError, match="4x32 pixels"):
        build_model(TrainConfig(), 10, (4, 32))
    with pytest.raises(UserError, match="no residual path"):
        build_model(TrainConfig(placement="residual"), 10, (32, 32))


def documented_network():
    """Return the example in DeeplySupervised's docstring."""
    indented = inspect.getdoc(DeeplySupervised).partition("resnet_ds:\n\n")[2]
    return textwrap.dedent(indented.partition("\nThe contract")[0])


@pytest.mark.parametrize("method", METHODS)
def test_the_network_in_the_docstring_initialises_and_trains(method, monkeypatch):
    source = documented_network()
    assert len(source.splitlines()) <= 35
    monkeypatch.setattr("lion_fast.init.gradinit_", partial(gradinit_, iterations=2))
    images, labels = batch(32)
    names = {"images": images, "labels": labels, "initialize_": initialize_}
    exec(compile(source, "docstring", "exec"), names)
    model = initialize_(names["Plain"](10, width=4), method, images, labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(model.loss(images, labels, 0.3).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


@every_model
def test_a_call_with_labels_is_the_loss(name):
    model, (images, labels) = SMALL[name](), batch(16)
    called = model(images, labels, 0.5, label_smoothing=0.1)
    for a, b in zip(called, model.loss(images, labels, 0.5, label_smoothing=0.1), strict=True):
        assert torch.equal(a, b)


def gradients(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def one_rank_of_ddp(rank, num_ranks, store):
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=num_ranks)
    torch.manual_seed(rank)
    model = SMALL["densenet"]()
    # DDP first: it sends rank 0's weights to all.
    ddp = nn.parallel.DistributedDataParallel(model)
    assert lion_dg_(ddp) is ddp
    assert not any(parameter.any() for parameter in model.aux_parameters())
    images, labels = batch(4 * num_ranks)
    mine = slice(4 * rank, 4 * rank + 4)
    expected = gradients(model, model.loss(images[mine], labels[mine], 0.3).loss)
    dist.all_reduce(expected)
    ddp(images[mine], labels[mine], 0.3).loss.backward()
    ours = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close(ours, expected / num_ranks, rtol=1e-4, atol=1e-6)
    dist.destroy_process_group()


def test_lion_dg_and_a_call_with_labels_work_through_ddp(tmp_path):
    one_rank_of_ddp(0, 1, tmp_path / "store")


def test_a_call_through_ddp_averages_the_gradients_of_two_processes(tmp_path):
    multiprocessing.spawn(one_rank_of_ddp, (2, tmp_path / "store"), nprocs=2)


def compiled_equals_eager(model, backend):
    images, target = batch(4)
    step = torch.compile(model.loss, fullgraph=True, backend=backend)
    for weight in (torch.tensor(0.0), torch.tensor(0.3)):
        with torch.compiler.set_stance("default" if weight == 0 else "fail_on_recompile"):
            ours = step(images, target, weight)
        grads = torch.autograd.grad(ours.loss, list(model.parameters()))
        eager = model.loss(images, target, weight)
        truth = torch.autograd.grad(eager.loss, list(model.parameters()))
        torch.testing.assert_close(ours.loss, eager.loss)
        torch.testing.assert_close(grads, truth, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["densenet", "residual"])
def test_a_changing_aux_weight_neither_breaks_the_graph_nor_recompiles(name):
    compiled_equals_eager(SMALL[name](), "aot_eager")


@pytest.mark.slow
def test_an_inductor_step_equals_an_eager_one():
    compiled_equals_eager(densenet_ds(growth_rate=4, block_layers=1), "inductor")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: captures a CUDA graph")
@every_model
def test_the_loss_is_captured_with_an_aux_weight_that_changes_between_replays(name):
    model = SMALL[name]().cuda().to(memory_format=torch.channels_last)
    images, target = (tensor.cuda() for tensor in batch())
    aux_weight = torch.tensor(0.0, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model.loss(images, target, aux_weight)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = model.loss(images, target, aux_weight)
    for value in (0.0, 0.3):
        aux_weight.fill_(value)
        graph.replay()
        aux = loss.per_head[:-1].sum()
        torch.testing.assert_close(loss.loss, loss.per_head[-1] + value * aux)
