"""AOT_CASES of deep_supervision_loss: what its launches compile for this project's networks."""

import torch

from ..aot_case import AotCase, case_of
from .launch import backward_launch, empty_forward, empty_gradients, forward_launches

DENSENET_TAPS = ((72, 32, 32), (84, 16, 16), (90, 8, 8))
"""(channels, height, width) of each tap"""
RESNET_TAPS = ((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4))

_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def _cases(
    taps: tuple[tuple[int, int, int], ...],
    tap_dtype: torch.dtype,
    channels_last: bool,
    num_classes: int,
    batch_size: int,
    linear_dtype: torch.dtype,
) -> tuple[AotCase, AotCase, AotCase]:
    """Return the pool, classify and backward kernels of one setting, from tensors without data."""
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def empty(*shape: int, dtype: torch.dtype = linear_dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    features = [empty(batch_size, *tap, dtype=tap_dtype).to(memory_format=layout) for tap in taps]
    channels = [tap[0] for tap in taps]
    weights, biases = [empty(num_classes, c) for c in channels], [empty(num_classes) for _ in taps]
    target, loss_weights = (
        empty(batch_size, dtype=torch.int64),
        empty(len(taps), dtype=torch.float32),
    )
    out = empty_forward(weights, target)
    pool, classify = forward_launches(out, features, weights, biases, target, loss_weights, 0.0)
    needs_linear = [True] * len(taps)
    grads = empty_gradients(
        out.d_logits, out.d_pooled, channels, needs_linear, True, linear_dtype, tap_dtype
    )
    backward = backward_launch(grads, out.loss, out.d_logits, out.pooled, out.d_pooled)

    maps = f"{len(taps)} taps {_NAMES[tap_dtype]}"
    linear = f"K {num_classes} {_NAMES[linear_dtype]}"
    memory = "channels_last" if channels_last else "contiguous"
    return (
        case_of(f"heads pool {maps} {memory}", pool),
        case_of(f"heads classify {len(taps)} taps {memory} {linear} B {batch_size}", classify),
        case_of(f"heads backward {maps} {linear} B {batch_size}", backward),
    )


def _pooled_case(
    channels: tuple[int, ...], dtype: torch.dtype, num_classes: int, linear_dtype: torch.dtype
) -> AotCase:
    """Return the one forward launch of pooled_supervision_loss, columns of one buffer, B 128."""
    buffer = torch.empty((128, sum(channels)), dtype=dtype, device="meta")
    weights = [buffer.new_empty((num_classes, c), dtype=linear_dtype) for c in channels]
    biases = [weight.new_empty(num_classes) for weight in weights]
    target = buffer.new_empty(128, dtype=torch.int64)
    loss_weights = buffer.new_empty(len(channels), dtype=torch.float32)
    (classify,) = forward_launches(
        empty_forward(weights, target),
        buffer.split(channels, 1),
        weights,
        biases,
        target,
        loss_weights,
        0.0,
    )
    pooled, linear = _NAMES[dtype], f"K {num_classes} {_NAMES[linear_dtype]}"
    return case_of(f"heads classify {len(channels)} pooled {pooled} {linear} B 128", classify)


def _shipped() -> list[AotCase]:
    """Return every dtype and layout once, and the blocks that class count and batch size select."""
    fp32, fp16, bf16 = torch.float32, torch.float16, torch.bfloat16
    settings = [
        (DENSENET_TAPS, fp32, False, 10, 128, fp32),
        (DENSENET_TAPS, fp32, True, 100, 128, fp32),
        (DENSENET_TAPS, fp16, False, 10, 128, fp16),
        (DENSENET_TAPS, fp16, True, 10, 2048, fp32),
        (DENSENET_TAPS, bf16, False, 10, 128, bf16),
        (DENSENET_TAPS, bf16, True, 100, 2048, fp32),
        (DENSENET_TAPS, fp32, False, 1000, 128, fp32),
        (RESNET_TAPS, fp16, True, 10, 128, fp32),
        (RESNET_TAPS, bf16, False, 10, 512, fp32),
        (DENSENET_TAPS[-1:], fp32, True, 10, 128, fp32),  # Triton's tuples of one element
    ]
    cases = [case for setting in settings for case in _cases(*setting)]
    densenet, resnet = (tuple(tap[0] for tap in taps) for taps in (DENSENET_TAPS, RESNET_TAPS))
    cases += [
        _pooled_case(densenet, fp32, 10, fp32),
        _pooled_case(densenet, fp32, 100, fp32),
        _pooled_case(densenet, bf16, 10, bf16),
        _pooled_case(resnet, fp32, 10, fp32),
    ]
    return list({case.name: case for case in cases}.values())


AOT_CASES = _shipped()
