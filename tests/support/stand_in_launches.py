"""What Triton's launcher hands the driver: `stand_in_launches.py CARD` checks it.

The project's ops run through their public functions, on a stream of their own. Each launch is
compared with what the project passed: kernel, grid, threads, stream and the bytes of every
parameter; each specialisation with the case that `lion_fast.kernels.aot` compiles for the same
launch: types, constants, alignment and PTX. Prints JSON: launches, problems, and which deliberate
errors were seen.

Private API: knobs.runtime.jit_cache_hook and JITFunction.device_caches.
"""

import inspect
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
import stand_in_gpu
from stand_in_gpu.processes import leave

GPU = stand_in_gpu.load(sys.argv[1])

import torch  # noqa: E402
import triton  # noqa: E402
from triton import knobs  # noqa: E402

from lion_fast.kernels import augment_batch, deep_supervision_loss  # noqa: E402
from lion_fast.kernels.aot import compile_case  # noqa: E402
from lion_fast.kernels.aot_case import AotCase, case_of  # noqa: E402
from lion_fast.kernels.heads.aot import DENSENET_TAPS  # noqa: E402
from lion_fast.kernels.launch import Launch  # noqa: E402

MAJOR, MINOR = stand_in_gpu.CARDS[sys.argv[1]].capability


class Compiled(NamedTuple):
    """What the JIT decided for one kernel before it compiled it."""

    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]


class Watch:
    """Sees each launch three times: as the project asks, as the JIT binds, as the driver gets."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.num_launches = self.num_specialisations = 0
        self.seen: set[str] = set()
        self._passed: list[stand_in_gpu.DriverLaunch] = []
        self._compiled: list[Compiled] = []
        GPU.on_driver_launch(self._passed.append)
        knobs.runtime.jit_cache_hook = self._on_compile
        run = Launch.run

        def watched(launch: Launch, device_of: torch.Tensor) -> None:
            self._passed.clear()
            self._compiled.clear()
            run(launch, device_of)
            self._judge(launch)

        Launch.run = watched  # type: ignore[method-assign]

    def _on_compile(self, *, compile: dict[str, Any], **_: Any) -> bool:  # noqa: A002
        self._compiled.append(
            Compiled(compile["signature"], compile["constants"], compile["configs"][0])
        )
        return False  # go on and compile

    def _judge(self, launch: Launch) -> None:
        (passed,) = self._passed  # one kernel, launched once
        problems = list(launch_problems(launch, passed))
        for compiled in self._compiled:
            problems += specialisation_problems(launch.kernel, case_of("", launch), compiled)
            problems += alignment_problems(launch, compiled)
            if launch.kernel.__name__ not in self.seen:
                self.seen.add(launch.kernel.__name__)
                problems += [f"missed: {e}" for e in missed_errors(launch, passed, compiled)]
        self.problems += [f"{passed.name}: {problem}" for problem in problems]
        self.num_launches += 1
        self.num_specialisations += len(self._compiled)


def expected_params(launch: Launch) -> list[tuple[str, bytes]]:
    """Return (name, bytes) of every parameter the kernel is to receive, in order.

    Written without a look at Triton: runtime arguments in the order of the kernel's signature,
    tuples flattened, None and constants left out, and an integer of 1 too unless the kernel asks
    not to be specialised on it; then two scratch pointers, null here.
    """
    annotations = inspect.get_annotations(launch.kernel.fn)
    generic = set(launch.kernel.do_not_specialize)
    flat = []
    for name in inspect.signature(launch.kernel.fn).parameters:
        if "constexpr" in str(annotations.get(name)):
            continue
        for label, item in items(name, launch.args[name]):
            if isinstance(item, torch.Tensor):
                flat.append((label, struct.pack("<Q", item.data_ptr())))
            elif isinstance(item, float):
                flat.append((label, struct.pack("<f", item)))
            elif item is not None and (item != 1 or name in generic):
                flat.append((label, struct.pack("<i", item)))
    return [*flat, ("global scratch", bytes(8)), ("profile scratch", bytes(8))]


def items(name: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, tuple):
        return [(name, value)]
    return [(f"{name}[{i}]", item) for i, item in enumerate(value)]


def launch_problems(launch: Launch, passed: stand_in_gpu.DriverLaunch) -> Iterator[str]:
    """Yield what differs between what was asked for and what reached the driver."""
    asked = {
        "kernel": launch.kernel.fn.__name__,
        "grid": (*launch.grid, 1, 1)[:3],
        "block": (32 * launch.num_warps, 1, 1),
        "stream": torch.cuda.current_stream().cuda_stream,
    }
    got = {"kernel": passed.name} | {name: getattr(passed, name) for name in list(asked)[1:]}
    for name in asked:
        if asked[name] != got[name]:
            yield f"{name} is {got[name]} instead of {asked[name]}"
    wanted = expected_params(launch)
    if len(wanted) != len(passed.params):
        yield f"{len(passed.params)} parameters instead of {len(wanted)}"
    for (name, value), param in zip(wanted, passed.params, strict=False):
        if value != param:
            yield f"{name} is {param.hex()} instead of {value.hex()}"


def specialisation_problems(kernel: Any, case: AotCase, jit: Compiled) -> list[str]:
    """Return where the ahead-of-time case of a launch differs from what the JIT compiled."""
    names = kernel.arg_names
    problems = [
        f"type of {name}: JIT {jit.signature[name]}, AOT {case.signature.get(name, 'constexpr')}"
        for name in names
        if jit.signature[name] != case.signature.get(name, "constexpr")
    ]
    constants = {path: plain(value) for path, value in jit.constants.items() if value is not None}
    ahead = {
        (names.index(name),): plain(value)
        for name, value in case.constexprs.items()
        if value is not None
    }
    problems += [
        f"constant {names[path[0]]}: JIT {constants.get(path)}, AOT {ahead.get(path)}"
        for path in constants.keys() | ahead.keys()
        if constants.get(path) != ahead.get(path)
    ]
    aligned = {path for path, value in jit.attributes.items() if value}
    problems += [f"alignment of {path} differs" for path in aligned ^ aligned_paths(case)]
    if not problems:
        ptx = compile_case(case, 10 * MAJOR + MINOR).asm["ptx"]
        compiled = [each.asm["ptx"] for each in kernel.device_caches[0][0].values()]
        problems += ["PTX differs from that of the AOT case"] if ptx not in compiled else []
    return problems


def aligned_paths(case: AotCase) -> set[tuple[int, ...]]:
    paths: set[tuple[int, ...]] = set()
    for name in case.aligned:
        index, kind = case.kernel.arg_names.index(name), case.signature[name]
        paths |= {(index, i) for i in range(len(kind))} if isinstance(kind, tuple) else {(index,)}
    return paths


def alignment_problems(launch: Launch, jit: Compiled) -> list[str]:
    """Return pointers that are not what their kernel was compiled for: multiples of 16."""
    problems = []
    for path, value in jit.attributes.items():
        name = launch.kernel.arg_names[path[0]]
        tensor = launch.args[name][path[1]] if len(path) > 1 else launch.args[name]
        if value and isinstance(tensor, torch.Tensor) and tensor.data_ptr() % 16:
            problems.append(f"{name} is at {tensor.data_ptr():#x}")
    return problems


def plain(value: Any) -> Any:
    """Return a constant without Triton's wrapping."""
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    return getattr(value, "value", value)


def missed_errors(
    launch: Launch, passed: stand_in_gpu.DriverLaunch, jit: Compiled
) -> Iterator[str]:
    """Yield the deliberate errors that the checks do not see."""
    case = case_of("", launch)
    wrong_params = [
        passed.params[:-1],
        passed.params[::-1],
        *(
            (*passed.params[:i], bytes(b ^ 255 for b in param), *passed.params[i + 1 :])
            for i, param in enumerate(passed.params)
        ),
    ]
    wrong = {
        "grid": passed._replace(grid=(passed.grid[0] + 1, *passed.grid[1:])),
        "block": passed._replace(block=(2 * passed.block[0], 1, 1)),
        "stream": passed._replace(stream=0),
        "kernel": passed._replace(name="another"),
    } | {f"parameters {i}": passed._replace(params=p) for i, p in enumerate(wrong_params)}
    yield from (what for what, each in wrong.items() if not list(launch_problems(launch, each)))
    options = case.options | {"num_warps": 2 * launch.num_warps}
    first = next(iter(case.constexprs))
    for what, other in {
        "warps": case._replace(options=options),
        "alignment": case._replace(aligned=case.aligned[1:]),
        "constant": case._replace(constexprs={**case.constexprs, first: "other"}),
    }.items():
        if not specialisation_problems(launch.kernel, other, jit):
            yield what


# --------------------------------------------------------------------- what is launched


def run_heads(dtype: torch.dtype, channels_last: bool, batch_size: int = 128) -> None:
    """Forward and backward, twice: the second time the kernels come from the JIT's cache."""
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def leaf(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="cuda", requires_grad=True)

    taps = [
        torch.empty((batch_size, *tap), dtype=dtype, device="cuda", memory_format=layout)
        for tap in DENSENET_TAPS
    ]
    for _ in range(2):
        losses = deep_supervision_loss(
            [tap.requires_grad_() for tap in taps],
            [leaf(10, tap[0]) for tap in DENSENET_TAPS],
            [leaf(10) for _ in DENSENET_TAPS],
            torch.zeros(batch_size, dtype=torch.int64, device="cuda"),
            torch.ones(len(taps), device="cuda"),
            label_smoothing=0.1,
            impl="triton",
        )
        losses.loss.backward()


def run_augment(dtype: torch.dtype, channels_last: bool) -> None:
    """With a plan and crops, with a plan alone, and with one batch's indices."""
    images = torch.zeros(1000, 32, 32, 3, dtype=torch.uint8, device="cuda")
    labels = torch.zeros(1000, dtype=torch.int64, device="cuda")
    indices = torch.zeros(5, 128, dtype=torch.int32, device="cuda")
    flips = torch.zeros(5, 128, dtype=torch.bool, device="cuda")
    crops = torch.zeros(5, 128, 2, dtype=torch.int32, device="cuda")
    step = torch.zeros((), dtype=torch.int64, device="cuda")
    for which, given in (
        (slice(None), {"crops": crops, "padding": 4, "step": step}),
        (slice(None), {"step": step}),
        (0, {}),
    ):
        augment_batch(
            images, labels, indices[which], flips[which], (0.1, 0.2, 0.3), (0.4, 0.5, 0.6),
            out_dtype=dtype, channels_last=channels_last, impl="triton", **given,
        )  # fmt: skip


def main() -> None:
    watch = Watch()
    dtypes = [torch.float32, torch.float16] + [torch.bfloat16] * (MAJOR >= 8)
    with torch.cuda.stream(torch.cuda.Stream()):
        for dtype in dtypes:
            for channels_last in (True, False):
                run_heads(dtype, channels_last)
                run_augment(dtype, channels_last)
        # An integer argument of 1, which Triton would make a constant if it might.
        run_heads(torch.float32, True, batch_size=1)
    print(
        json.dumps(
            {
                "problems": watch.problems,
                "launches": watch.num_launches,
                "specialisations": watch.num_specialisations,
                "kernels": sorted(watch.seen),
                "triton": triton.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
    leave()
