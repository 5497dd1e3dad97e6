"""Stages that look at values: kernels against fp64 at a run's own sizes, and their bits."""

import copy
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gpu.findings import Call
from support.checkout import ROOT

HEADS = (
    ("densenet", 67, 10, torch.float32),
    ("densenet", 128, 10, torch.bfloat16),
    ("densenet", 128, 1000, torch.float16),
    ("densenet", 2048, 100, torch.float16),
    ("resnet", 128, 10, torch.bfloat16),
)
"""network, images, classes, dtype"""


def values(call: Call, seconds: float) -> None:
    """Compare the heads, Muon, augmentation and the fused backbone with what they stand for."""
    for check in (_heads, _muon, _augment, _dense):
        try:
            check(call)
        except Exception as error:  # whatever it is, the others are still to be looked at
            found = f"{type(error).__name__}: {str(error)[-1500:]}"
            call.say("values", what=check.__name__.strip("_"), error=found)


def _median_max(found: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """Return the median and the largest of the relative errors, in the Euclidean norm."""
    from dense_runs import relative_errors

    errors = sorted(relative_errors(list(found), list(truth)))
    return [round(errors[len(errors) // 2], 7), round(errors[-1], 7)]


def _differing(run: Callable[[], Sequence[Tensor]], first: Sequence[Tensor], repeats: int) -> int:
    """Return how many of the repeats give other bits; half of them run beside a busy stream."""
    side, noise = torch.cuda.Stream(), torch.randn(4096, 4096, device="cuda")
    differing = 0
    for repeat in range(repeats):
        if repeat >= repeats // 2:  # so that programs meet in another order
            with torch.cuda.stream(side):
                noise @ noise
        differing += not all(map(torch.equal, first, run()))
    return differing


def _heads(call: Call) -> None:
    from bench_heads import make_inputs

    from lion_fast.kernels import deep_supervision_loss

    for network, batch, classes, dtype in HEADS:
        device = torch.device("cuda")
        given = make_inputs(network, batch, dtype, device, num_classes=classes)
        maps, weights, biases, target, alphas = given

        def run(impl: Any, exact: bool = False) -> list[Tensor]:
            groups = [
                [(t.detach().double() if exact else t.detach()).requires_grad_() for t in group]
                for group in (maps, weights, biases)  # noqa: B023 - called in this round
            ]
            scale = alphas.double() if exact else alphas  # noqa: B023
            found = deep_supervision_loss(*groups, target, scale, impl=impl)  # noqa: B023
            grads = torch.autograd.grad(found.loss, sum(groups, []))
            return [found.loss.detach(), *grads]

        ours = run("triton")
        repeats = 2 if call.rehearse else 30
        call.say(
            "values",
            what=f"heads {network} B{batch} K{classes} {dtype}",
            median_max=_median_max(ours, run("torch", exact=True)),
            runs_that_differ=_differing(lambda: run("triton"), ours, repeats),
            of=repeats,
        )


def _muon(call: Call) -> None:
    import test_muon

    tensors = test_muon.make([*test_muon.SHAPES, *test_muon.LARGE])
    truth = test_muon.truth(tensors, lr=1.0)

    def run() -> list[Tensor]:
        ours = test_muon.copied(tensors)
        test_muon.muon_update_(*ours, test_muon.rate(1.0), impl="triton")
        return [t for group in ours for t in group]

    first = run()
    largest = max(
        (a - e).abs().max().item() for a, e in zip(first, truth[0], strict=False)
    )  # fmt: skip
    repeats = 2 if call.rehearse else 20
    call.say(
        "values", what="muon", largest_error=largest, allowed=2e-5,
        runs_that_differ=_differing(run, first, repeats), of=repeats,
    )  # fmt: skip


def _augment(call: Call) -> None:
    from lion_fast.kernels import augment_batch, augment_batch_ref

    for side, reduced, dtype in (
        (16, None, torch.float32),
        (32, None, torch.bfloat16),
        (64, None, torch.float16),
        (32, 16, torch.bfloat16),
        (32, 24, torch.float32),
    ):
        generator = torch.Generator("cuda").manual_seed(side)
        pixels = torch.randint(
            256, (2048, side, side, 3), dtype=torch.uint8, device="cuda", generator=generator
        )
        labels = torch.arange(2048, device="cuda") % 10
        order = torch.randperm(2048, device="cuda", generator=generator)[:128]
        flips = torch.rand(128, device="cuda", generator=generator) < 0.5
        given = {"mean": (0.49, 0.48, 0.45), "std": (0.25, 0.24, 0.26), "out_dtype": dtype,
                 "side": reduced}  # fmt: skip
        ours = augment_batch(pixels, labels, order, flips, **given, impl="triton")
        exact = augment_batch_ref(pixels, labels, order, flips, **given)
        call.say(
            "values",
            what=f"augment {side}x{side} {'' if reduced is None else f'to {reduced} '}{dtype}",
            median_max=_median_max([ours[0]], [exact[0].double()]),
            runs_that_differ=int(not torch.equal(ours[1], exact[1])),
            of=1,
        )


def _dense(call: Call) -> None:
    from dense_runs import kernels_on

    compare_backbone(call, "dense", kernels_on)


def compare_backbone(
    call: Call, name: str, backbone: Callable[[Any, Tensor, int], list[Tensor]]
) -> None:
    """Take the paper's network at its own size; fp16, which had no end last time, before bf16.

    backbone: the pooled taps, from the network, images and layers a block.
    """
    from dense_runs import Setting, make_images, make_model, parameters_of

    for dtype in (torch.float16, torch.bfloat16):
        layers = 6
        setting = Setting(
            batch=128, height=32, width=32, block_layers=layers, channels_last=True, dtype=dtype
        )
        scale = 1024.0 if dtype == torch.float16 else 1.0
        images = make_images(setting)

        def run(model: Any, forward: Callable[[Any], list[Tensor]]) -> list[list[Tensor]]:
            pooled = forward(model)
            found = parameters_of(model)
            # Columns of one buffer, as the heads hand them over: kernels are made for its stride.
            widths = [each.shape[1] for each in pooled]
            generator = torch.Generator("cuda").manual_seed(2)
            whole = torch.randn(128, sum(widths), generator=generator, device="cuda")
            parts = zip(whole.split(widths, 1), pooled, strict=True)
            seeds = [scale * part.to(each.dtype) for part, each in parts]  # noqa: B023
            grads = torch.autograd.grad(pooled, found.learned, seeds)
            running = [*found.running_means, *found.running_vars]
            return [[p.detach() for p in pooled], [g / scale for g in grads], running]  # noqa: B023

        def modules(model: Any) -> list[Tensor]:
            own = next(model.parameters()).dtype
            exact = own == torch.float64
            with torch.autocast("cuda", dtype=dtype, enabled=not exact):  # noqa: B023
                taps = model.taps(images.to(own))  # noqa: B023
            return [t.to(torch.promote_types(t.dtype, torch.float32)).mean((2, 3)) for t in taps]

        def kernels(model: Any) -> list[Tensor]:
            return backbone(model, images, layers)  # noqa: B023

        def again() -> list[Tensor]:
            return [t for group in run(make_model(setting), kernels) for t in group]  # noqa: B023

        truth = run(copy.deepcopy(make_model(setting)).double(), modules)
        stock, ours = run(make_model(setting), modules), run(make_model(setting), kernels)
        for kind, a, b, exact in zip(
            ("pooled", "grads", "running"), ours, stock, truth, strict=True
        ):
            call.say(
                "values", what=f"{name} {dtype} {kind}", ours_median_max=_median_max(a, exact),
                autocast_median_max=_median_max(b, exact),
            )  # fmt: skip
        repeats = 2 if call.rehearse else 40
        differing = _differing(again, [t for group in ours for t in group], repeats)
        call.say("values", what=f"{name} {dtype} bits", runs_that_differ=differing, of=repeats)


def tests(call: Call, seconds: float) -> None:
    """Run the tests that only a GPU runs, in one process without the benchmarks' plugin."""
    from gpu.suite import count_tests

    junit = call.out / "tests.xml"
    chosen = ["tests/test_clock.py"] if call.rehearse else ["tests"]
    command = [
        *(sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line"),
        *("-p", "no:benchmark", "-m", "gpu and not slow", f"--junitxml={junit}", *chosen),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    counts = count_tests(junit) if junit.exists() else {}
    junit.unlink(missing_ok=True)
    call.say("tests", code=done.returncode, last=done.stdout.splitlines()[-3:], **counts)
