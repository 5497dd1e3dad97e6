import numpy as np
import pytest
import torch
from gpu_waits import waits_refused
from torchvision.transforms.v2 import functional as TF

from lion_fast.kernels import augment_batch, augment_batch_ref, reduce_images
from lion_fast.kernels.augment import op
from lion_fast.kernels.augment.aot import AOT_CASES

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
needs_gpu = pytest.mark.skipif(not CUDA, reason="needs a CUDA GPU: streams and graphs")
bf16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(not CUDA, reason="needs a CUDA GPU: the interpreter truncates bf16"),
)
LAYOUTS = {True: torch.channels_last, False: torch.contiguous_format}


def make_set(height=8, width=8, num=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (num, height, width, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randint(10, (num,), generator=generator)


def make_plan(*shape, num=20, padding=0, seed=1):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(num, shape, generator=generator, dtype=torch.int32)
    flips = torch.rand(shape, generator=generator) < 0.5
    crops = torch.randint(2 * padding + 1, (*shape, 2), generator=generator, dtype=torch.int32)
    return indices, flips, crops if padding else None


def on_device(*tensors):
    return [None if tensor is None else tensor.to(DEVICE) for tensor in tensors]


def truth(images, indices, flips, crops, padding):
    """What the op computes, image by image in fp64 numpy."""
    batch = []
    for b, index in enumerate(indices.tolist()):
        top, left = (0, 0) if crops is None else crops[b].tolist()
        height, width = images.shape[1:3]
        pads = ((padding, padding), (padding, padding), (0, 0))
        image = np.pad(images[index].numpy(), pads)[top : top + height, left : left + width]
        image = image[:, ::-1] if flips[b] else image
        batch.append((image / 255 - np.array(MEAN)) / np.array(STD))
    return torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, bf16])
@pytest.mark.parametrize(
    "height, width, batch_size, padding",
    [(1, 1, 1, 0), (1, 1, 3, 1), (7, 5, 127, 0), (7, 5, 3, 2), (8, 8, 3, 0), (32, 32, 3, 4)],
)
def test_kernel_equals_reference_to_the_bit_and_both_are_rounded_truth(
    height, width, batch_size, padding, dtype, channels_last, poisoned_memory
):
    images, labels = make_set(height, width)
    indices, flips, crops = make_plan(batch_size, padding=padding)
    setting = dict(padding=padding, out_dtype=dtype, channels_last=channels_last)

    stock, stock_labels = augment_batch_ref(
        images, labels, indices, flips, MEAN, STD, crops=crops, **setting
    )
    data = on_device(images, labels, indices, flips)
    (device_crops,) = on_device(crops)
    ours, our_labels = augment_batch(*data, MEAN, STD, crops=device_crops, impl="triton", **setting)

    exact = truth(images, indices, flips, crops, padding)
    # Up to the difference, 1 / 255, mean, product and difference are rounded at magnitudes below 1;
    # then std, the quotient and the cast at magnitudes below 2.7.
    slack = 4 * 2**-25 / min(STD) + 2.7 * (2 * 2**-24 + torch.finfo(dtype).eps / 2)
    assert (stock.double() - exact).abs().max() <= slack
    assert torch.equal(ours.cpu(), stock)
    assert torch.equal(our_labels.cpu(), labels[indices.long()])
    assert torch.equal(stock_labels, labels[indices.long()])
    for result in ours, stock:
        assert result.dtype == dtype
        assert result.is_contiguous(memory_format=LAYOUTS[channels_last])


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, bf16])
@pytest.mark.parametrize(
    "full, side, padding",
    [(32, 16, 0), (32, 24, 0), (32, 24, 4), (16, 12, 2), (9, 6, 1), (8, 7, 0), (8, 8, 2)],
)
def test_kernel_reduces_as_the_reference_to_the_bit(
    full, side, padding, dtype, channels_last, poisoned_memory
):
    images, labels = make_set(full, full)
    indices, flips, crops = make_plan(5, padding=padding)
    setting = dict(padding=padding, channels_last=channels_last)
    whole, _ = augment_batch_ref(images, labels, indices, flips, MEAN, STD, crops=crops, **setting)

    results = []
    for impl, device in (("torch", "cpu"), ("triton", DEVICE)):
        data = [None if t is None else t.to(device) for t in (images, labels, indices, flips)]
        results.append(
            augment_batch(
                *data, MEAN, STD, crops=None if crops is None else crops.to(device),
                out_dtype=dtype, side=side, impl=impl, **setting,
            )
        )  # fmt: skip

    for batch, batch_labels in results:
        assert batch.shape == (5, 3, side, side) and batch.dtype == dtype
        assert torch.equal(batch.cpu(), reduce_images(whole, side).to(dtype))
        assert torch.equal(batch_labels.cpu(), labels[indices.long()])
        assert batch.is_contiguous(memory_format=LAYOUTS[channels_last])


@pytest.mark.parametrize("padding", [0, 4])
def test_reference_is_torchvision_to_the_bit(padding):
    images, labels = make_set(32, 32)
    indices, flips, crops = make_plan(16, padding=padding)
    batch, _ = augment_batch_ref(
        images, labels, indices, flips, MEAN, STD, crops=crops, padding=padding
    )
    for b, index in enumerate(indices.tolist()):
        image = images[index].permute(2, 0, 1)
        if crops is not None:
            image = TF.crop(TF.pad(image, [padding]), *crops[b].tolist(), 32, 32)
        if flips[b]:
            image = TF.horizontal_flip(image)
        image = TF.normalize(TF.to_dtype(image, torch.float32, scale=True), MEAN, STD)
        assert torch.equal(batch[b], image)


def test_reference_in_fp64_is_the_truth():
    images, labels = make_set(7, 5)
    indices, flips, crops = make_plan(9, padding=2)
    batch, _ = augment_batch_ref(
        images, labels, indices, flips, MEAN, STD, crops=crops, padding=2, out_dtype=torch.float64
    )
    exact = truth(images, indices, flips, crops, 2)
    assert (batch - exact).abs().max() < 1e-15 * 2**4


@pytest.mark.parametrize("impl", ["triton", "torch"])
@pytest.mark.parametrize("padding", [0, 2])
def test_a_step_counter_walks_the_plan_row_by_row(impl, padding):
    images, labels = on_device(*make_set())
    indices, flips, crops = on_device(*make_plan(4, 3, padding=padding))
    counter = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for row in range(4):
        walked = augment_batch(
            images, labels, indices, flips, MEAN, STD,
            crops=crops, padding=padding, step=counter, impl=impl,
        )  # fmt: skip
        direct = augment_batch(
            images, labels, indices[row], flips[row], MEAN, STD,
            crops=None if crops is None else crops[row], padding=padding, impl=impl,
        )  # fmt: skip
        assert torch.equal(walked[0], direct[0]) and torch.equal(walked[1], direct[1])
        counter.add_(1)


def black(num, height=8, width=8):
    value = -torch.tensor(MEAN) / torch.tensor(STD)
    return value[None, :, None, None].expand(num, 3, height, width)


@pytest.mark.parametrize("bad", [-1, 20, 2**40, -(2**40)])
def test_kernel_makes_an_index_outside_the_set_a_black_image_with_label_minus_one(bad):
    images, labels = make_set()
    indices, flips = torch.tensor([3, bad, 4]), torch.tensor([False, True, False])
    batch, batch_labels = augment_batch(
        *on_device(images, labels, indices, flips), MEAN, STD, impl="triton"
    )
    assert torch.equal(batch[1:2].cpu(), black(1))
    assert batch_labels.tolist() == [labels[3].item(), -1, labels[4].item()]


@pytest.mark.parametrize("bad", [-1, 4, 2**40])
def test_kernel_makes_a_step_outside_the_plan_a_black_batch(bad):
    data = on_device(*make_set(), *make_plan(4, 3)[:2])
    step = torch.tensor(bad, device=DEVICE)
    batch, batch_labels = augment_batch(*data, MEAN, STD, step=step, impl="triton")
    assert torch.equal(batch.cpu(), black(3))
    assert batch_labels.tolist() == [-1, -1, -1]


def test_kernel_shows_black_beyond_the_padding():
    images, labels = make_set()
    indices, flips = torch.tensor([3, 4]), torch.tensor([False, False])
    crops = torch.tensor([[10**6, 0], [0, -(10**6)]])
    batch, _ = augment_batch(
        *on_device(images, labels, indices, flips), MEAN, STD,
        crops=crops.to(DEVICE), padding=1, impl="triton",
    )  # fmt: skip
    assert torch.equal(batch.cpu(), black(2))


def test_reference_names_a_value_out_of_range():
    images, labels = make_set()
    indices, flips, crops = make_plan(4, 3, padding=2)

    def run(indices=indices, crops=crops, step=0):
        augment_batch(
            images, labels, indices, flips, MEAN, STD,
            crops=crops, padding=2, step=torch.tensor(step), impl="torch",
        )  # fmt: skip

    run()
    with pytest.raises(ValueError, match="step holds 4: it must lie in 0 <= value < 4"):
        run(step=4)
    with pytest.raises(ValueError, match="indices holds -1: .* < 20"):
        run(indices=indices.index_fill(1, torch.tensor(1), -1))
    with pytest.raises(ValueError, match="indices holds 20: .* < 20"):
        run(indices=indices.index_fill(1, torch.tensor(1), 20))
    with pytest.raises(ValueError, match="crops holds 5: .* < 5"):
        run(crops=crops.index_fill(2, torch.tensor(1), 5))


def test_sets_beyond_two_gigabytes_are_addressed_in_64_bits():
    num = 2**31 // (32 * 32 * 3) + 2
    # Never touched but at its end, so that the CPU gives it no memory.
    images = torch.empty((num, 32, 32, 3), dtype=torch.uint8, device=DEVICE)
    labels = torch.zeros(num, dtype=torch.int64, device=DEVICE)
    images[-1], labels[-1] = 255, 7
    index, flip = on_device(torch.tensor([num - 1], dtype=torch.int32), torch.tensor([False]))
    batch, batch_labels = augment_batch(
        images, labels, index, flip, (0.0,) * 3, (1.0,) * 3, impl="triton"
    )
    assert (batch == 1).all() and batch_labels.item() == 7


@pytest.mark.parametrize("planned", [True, False])
def test_op_passes_opcheck(planned):
    images, labels = on_device(*make_set())
    shape = (2, 3) if planned else (3,)
    indices, flips, crops = on_device(*make_plan(*shape, padding=2))
    step = torch.tensor(1, device=DEVICE) if planned else None
    cases = [
        (torch.float32, True, None), (torch.float16, False, None), (torch.float16, True, 4),
        (torch.float32, False, 6),
    ]  # fmt: skip
    for dtype, channels_last, side in cases:
        torch.library.opcheck(
            torch.ops.lion_fast.augment_batch.default,
            (images, labels, indices, flips, MEAN, STD, crops, 2, step, dtype, channels_last, side),
        )


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_op_compiles_as_one_graph(impl):
    images, labels = on_device(*make_set())
    indices, flips, crops = on_device(*make_plan(4, 3, padding=2))
    setting = dict(crops=crops, padding=2, impl=impl)

    def run(step):
        return augment_batch(images, labels, indices, flips, MEAN, STD, step=step, **setting)

    step = torch.tensor(2, device=DEVICE)
    eager, compiled = run(step), torch.compile(run, fullgraph=True)(step)
    assert (eager[0] - compiled[0]).abs().max() <= 1e-6
    assert torch.equal(eager[1], compiled[1])
    assert eager[0].stride() == compiled[0].stride()


def test_impl_auto_never_interprets_the_kernel_on_the_cpu(monkeypatch):
    monkeypatch.setattr(op, "_augment_batch_op", None)
    data = (*make_set(), *make_plan(3)[:2])
    augment_batch(*data, MEAN, STD)
    with pytest.raises((TypeError, ValueError)):  # the latter where there is no interpreter
        augment_batch(*data, MEAN, STD, impl="triton")


IMAGES, LABELS = make_set()
INDICES, FLIPS, CROPS = make_plan(3, padding=2)
STEP = torch.tensor(0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": IMAGES.float()}, "images is .* give .* torch.uint8"),
        ({"images": IMAGES[..., :2]}, r"images is \(20, 8, 8, 2\)"),
        ({"images": IMAGES.transpose(1, 2)}, "images must be contiguous"),
        ({"images": IMAGES[0]}, r"images are \(8, 8, 3\)"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "at least one index"),
        ({"labels": LABELS[:3]}, r"labels is \(3,\)"),
        ({"labels": LABELS.int()}, "labels is .* torch.int32: give .* torch.int64"),
        ({"indices": INDICES.float()}, "indices is .* torch.int32 or torch.int64"),
        ({"indices": INDICES[:0], "flips": FLIPS[:0], "crops": CROPS[:0]}, "at least one index"),
        ({"flips": FLIPS[:2]}, r"flips is \(2,\) .* give \(3,\) torch.bool"),
        ({"flips": FLIPS[:1].expand(3)}, "flips must be contiguous"),
        ({"crops": CROPS[:, :1]}, r"crops is \(3, 1\)"),
        ({"crops": None}, "padding is 2"),
        ({"padding": -1}, "padding is -1"),
        ({"step": STEP}, r"indices are \(3,\): give \(B,\) without step and \(S, B\) with it"),
        ({"step": STEP.int()}, "step is .* torch.int64"),
        ({"mean": (0.5,)}, "three floats each"),
        ({"std": (0.5, 0.0, 0.5)}, "std not zero"),
        ({"side": 5}, "5 pixels of 8: images of this size are reduced to 4, 6, 7"),
        ({"out_dtype": torch.float64}, "out_dtype is torch.float64"),
        ({"impl": "cuda"}, "impl is 'cuda'"),
    ],
)
@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_bad_arguments_are_named(change, message, impl):
    arguments = dict(
        images=IMAGES, labels=LABELS, indices=INDICES, flips=FLIPS, mean=MEAN, std=STD,
        crops=CROPS, padding=2, impl=impl,
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        augment_batch(**{**arguments, **change})


def test_ahead_of_time_cases_cover_every_dtype_and_layout_and_every_argument():
    kinds = {(case.signature["images_out"], case.constexprs["CHANNELS_LAST"]) for case in AOT_CASES}
    assert kinds == {(f"*{t}", last) for t in ("fp32", "fp16", "bf16") for last in (True, False)}
    reduced = {
        (case.constexprs["HEIGHT_OUT"], case.constexprs["KEPT"], case.signature["images_out"])
        for case in AOT_CASES
    }
    trained = {(*size, f"*{t}") for size in ((16, 1), (24, 3)) for t in ("fp32", "fp16", "bf16")}
    assert trained <= reduced
    for case in AOT_CASES:
        assert [*case.signature, *case.constexprs] == case.kernel.arg_names


@needs_gpu
def test_a_captured_graph_walks_the_plan_by_itself():
    images, labels = on_device(*make_set())
    indices, flips, crops = on_device(*make_plan(6, 3, padding=2))
    counter = torch.zeros((), dtype=torch.int64, device=DEVICE)
    setting = dict(crops=crops, padding=2, out_dtype=torch.float16, impl="triton")

    def run(step):
        return augment_batch(images, labels, indices, flips, MEAN, STD, step=step, **setting)

    run(counter)  # compiles outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch, batch_labels = run(counter)
        counter.add_(1)
    for row in [0, 1, 2, 4, 5]:
        counter.fill_(row)
        graph.replay()
        expected = run(torch.tensor(row, device=DEVICE))
        assert torch.equal(batch, expected[0]) and torch.equal(batch_labels, expected[1])
        assert counter.item() == row + 1


@needs_gpu
def test_nothing_waits_for_the_device():
    images, labels = on_device(*make_set())
    indices, flips, crops = on_device(*make_plan(6, 3, padding=2))
    counter = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for impl in "triton", "torch":
        setting = dict(crops=crops, padding=2, step=counter, impl=impl)
        augment_batch(images, labels, indices, flips, MEAN, STD, **setting)
        with waits_refused():
            augment_batch(images, labels, indices, flips, MEAN, STD, **setting)
