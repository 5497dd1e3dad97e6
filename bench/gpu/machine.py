"""Stages before anything is timed: what the machine is, and code compiled ahead on all cores."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from functools import partial
from typing import Any

import torch

from gpu.configs import CONFIGS, HandLoopIn, make_training, plain_script, synthetic_images
from gpu.findings import Call, leave
from lion_fast.data.images import ImageSet


def machine(call: Call, seconds: float) -> None:
    """State hardware and versions, and the card's rate of copies and of products."""
    from support.harness import copy_bandwidth, matmul_rate
    from support.machine import machine_info

    device = torch.device("cuda", 0)
    call.say("machine", **machine_info(device, call.commit))
    call.say("machine", copy_gb_s=copy_bandwidth(device) / 1e9)
    for dtype in (torch.bfloat16, torch.float32):
        call.say("machine", dtype=str(dtype), tflops=matmul_rate(device, dtype) / 1e12)


def _cases() -> dict[str, Any]:
    """Return what the package ships, and the fused backbone's whole step in fp16 too."""
    from lion_fast.kernels.aot import CASES
    from lion_fast.kernels.dense.aot import DENSENET, step_cases

    return {case.name: case for case in [*CASES, *step_cases(DENSENET, torch.float16)]}


def _compile(name: str, capability: int) -> tuple[str, str, str, float]:
    from lion_fast.kernels.aot import report

    start = time.monotonic()
    found = report(_cases()[name], capability)
    return name, found.cell, found.error, round(time.monotonic() - start, 1)


def kernels(call: Call, seconds: float) -> None:
    """Compile every kernel for this card, into the cache that Triton's launcher reads."""
    start = time.monotonic()
    fork = multiprocessing.get_context("fork")
    with fork.Pool(1) as pool:
        major, minor = pool.apply(torch.cuda.get_device_capability)
    cases = {
        name: case
        for name, case in _cases().items()
        if case.min_capability <= 10 * major + minor
    }  # fmt: skip
    # The longest first, or the last one makes all wait.
    long = ("layer", "group", "input", "weights", "muon")
    order = sorted(cases, key=lambda name: not any(word in name for word in long))
    order = order[:1] if call.rehearse else order
    bad = 0
    with ProcessPoolExecutor(max(1, (os.cpu_count() or 2) - 1), mp_context=fork) as pool:
        waiting = [pool.submit(_compile, name, 10 * major + minor) for name in order]
        for done in as_completed(waiting):
            name, cell, error, took = done.result()
            if error or "/0/" not in cell:
                bad += 1
                call.say("kernels", case=name, cell=cell, problem=error[-300:], seconds=took)
    took = round(time.monotonic() - start, 1)
    call.say("kernels", compiled=len(order), spilling_or_failed=bad, seconds=took)


def inductor(call: Call, seconds: float) -> None:
    """Fill Inductor's cache, one process a configuration; how kernels are tuned is not kept."""
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=_fill, args=(call, *each)) for each in _compiled(call)]
    for child in children:
        child.start()
    for child in children:
        child.join()


def _compiled(call: Call) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what compiles, by name: everything that `times` will time through Inductor."""
    images = synthetic_images(call)
    for name, settings in CONFIGS.items():
        if settings.get("graph_compile", True) and settings.get("engine") in ("graph", "compile"):
            yield name, partial(make_training, call, name, images, num_steps=64)
    yield "stock", partial(HandLoopIn, call, images, mode="reduce-overhead")
    yield "plain_max_autotune", partial(_kernels_of_max_autotune, call, images)


def _kernels_of_max_autotune(call: Call, images: ImageSet) -> None:
    """Compile what it chooses among into Triton's cache alone: it chooses on the quiet card."""
    import torch._functorch.config
    import torch._inductor.config

    os.environ["TORCHINDUCTOR_CACHE_DIR"] += "_max_autotune"
    torch._inductor.config.fx_graph_cache = False
    torch._functorch.config.enable_autograd_cache = False
    with closing(plain_script(call, images, num_workers=0, compile_mode="max-autotune")) as script:
        script()


def _fill(call: Call, name: str, run: Callable[[], object]) -> None:
    import torch._inductor.config

    # Beside other work a kernel's fastest form cannot be told: whoever times it tunes it again.
    torch._inductor.config.autotune_local_cache = False
    start = time.monotonic()
    run()
    call.say("inductor", config=name, setup_seconds=round(time.monotonic() - start, 1))
    leave()
