"""Kernels compile only where the interpreter is off, so these tests run processes of their own."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from lion_fast.kernels.aot import CAPABILITIES, CASES
from lion_fast.kernels.aot_case import case_of
from lion_fast.kernels.launch import Launch


def run_python(*arguments, **environment):
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
    )


def check(*options, **environment):
    return run_python("-m", "lion_fast.kernels.aot", *options, **environment)


def test_every_op_lists_cases_in_every_dtype_and_layout():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    for op in ("heads pool", "augment_batch"):
        for dtype in ("fp32", "fp16", "bf16"):
            for layout in ("contiguous", "channels_last"):
                assert any(
                    name.startswith(op) and dtype in name and layout in name for name in names
                )
    assert any(name.startswith("heads classify 3 pooled fp32") for name in names)
    assert any(name.startswith("heads backward 1 taps") for name in names)
    for num_classes in (10, 100):
        assert any(f"heads classify 3 taps channels_last K {num_classes} " in n for n in names)


def test_no_case_is_compiled_twice():
    whole = {repr((case.kernel.fn.__name__, case._replace(name="", kernel=None))) for case in CASES}
    assert len(whole) == len(CASES)


def test_a_case_compiles_with_the_options_its_launch_runs_with():
    launched = {}

    class Kernel:
        fn = staticmethod(lambda x, N: None)

        def __class_getitem__(cls, grid):
            return lambda x, N, **options: launched.update(options)

    launch = Launch(Kernel, (1,), {"x": torch.zeros(1), "N": 4}, 8, num_stages=2, fp_fusion=False)
    launch.run(device_of=launch.args["x"])
    assert case_of("", launch).options == launched
    assert launched == {"num_warps": 8, "num_stages": 2, "enable_fp_fusion": False}


def test_an_argument_that_is_none_is_compiled_as_a_constant():
    class Kernel:
        fn = staticmethod(lambda x, crops, N: None)

    case = case_of("", Launch(Kernel, (1,), {"x": torch.zeros(1), "crops": None, "N": 4}, 4))
    assert case.constexprs == {"crops": None} and case.signature == {"x": "*fp32", "N": "i32"}


UNSPECIALISED = """
import inspect
from lion_fast.kernels.aot import CASES
for case in CASES:
    free = {case.kernel.params[i].name for i in range(len(case.kernel.params))
            if case.kernel.params[i].do_not_specialize}
    whole = {name for name, kind in case.signature.items() if kind in ("i32", "i64")}
    assert whole <= free, (case.name, whole - free)
"""


def test_no_integer_argument_is_specialised_on_the_value_one_or_a_multiple_of_sixteen():
    finished = run_python("-c", UNSPECIALISED)
    assert finished.returncode == 0, finished.stderr


VISIBLE = """
from lion_fast.kernels.aot import CASES, compile_case
for case in CASES:
    if case.name.startswith(("heads classify 3 taps contiguous K 10 fp32 B 128",
                             "heads classify 3 pooled fp32 K 10 fp32")):
        for capability in (70, 90):
            ptx = compile_case(case, capability).asm["ptx"]
            lines = [line.strip() for line in ptx.splitlines()]
            (count,) = [i for i, line in enumerate(lines) if "atom.global" in line]
            assert "atom.global.gpu.acq_rel.add.u32" in lines[count], lines[count]
            stores = [i for i, line in enumerate(lines) if "st.global" in line and i < count]
            barriers = [i for i, line in enumerate(lines) if line.startswith("bar.sync")]
            assert any(stores[-1] < i < count for i in barriers)
            reads = [i for i, line in enumerate(lines) if "ld.global.cg" in line]
            assert reads and any(count < i < reads[0] for i in barriers)
            print("checked", capability)
"""


def test_partial_sums_are_ordered_before_the_count_and_read_past_the_l1_cache():
    finished = run_python("-c", VISIBLE)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("checked") == 4


UNALIGNED = """
from lion_fast.kernels.aot import CASES, report
kinds = {}
for case in CASES:
    if not case.name.startswith("dense "):  # its buffers are its own, and 75 is refused
        kinds.setdefault((case.kernel.fn.__name__, "pooled" in case.name), case)
for case in kinds.values():
    for capability in (75, 90):
        result = report(case._replace(aligned=()), capability)
        print(case.name, result.cell, "BAD" if result.failed else "good")
"""


def test_every_kernel_also_compiles_for_tensors_that_start_anywhere():
    finished = run_python("-c", UNALIGNED)
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert len(lines) == 12 and all(line.endswith("good") for line in lines), finished.stdout


def test_pool_kernels_compile_without_spills_or_tensor_cores():
    finished = check("--json", "--match", "pool 3 taps fp16", "--capability", "75", "90")
    assert finished.returncode == 0, finished.stderr
    rows = [json.loads(line) for line in finished.stdout.splitlines()]
    assert [row["capability"] for row in rows] == [75, 90] * 2
    for row in rows:
        assert row["error"] == "" and row["spilled_bytes"] == row["tensor_core"] == 0
        assert 16 <= row["registers"] <= 128 and 0 < row["shared_bytes"] < 48 * 1024


# The fused backbone's take minutes: bench/results/aot.txt has them, test_dense_kernels_plan two.
@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("op", ["heads", "augment", "muon"])
def test_every_kernel_compiles_for_every_target_and_none_spills(op):
    finished = check("--match", op)
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    for case in (case for case in CASES if op in case.name):
        # Names that begin alike go on with a word, and this one with its first cell.
        (row,) = [line for line in lines if re.match(rf"{re.escape(case.name)} +[-\d]", line)]
        shipped = [c for c in CAPABILITIES if c >= case.min_capability]
        cells = [cell.split("/") for cell in row.split() if cell.count("/") == 3]
        assert len(cells) == len(shipped) and all(spilled == "0" for _, _, spilled, _ in cells), row
        on_tensor_cores = "tensor cores" in case.name
        assert all((mma != "0") == on_tensor_cores for *_, mma in cells), row


BAD_KERNELS = """
import triton, triton.language as tl
from lion_fast.kernels.aot_case import AotCase
from lion_fast.kernels.aot import report

@triton.jit
def spilling(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    kept = tl.load(x + i)
    tl.store(out + i, kept * tl.sum(kept, 0))

@triton.jit
def multiplying(x, out, N: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + i, tl.dot(tl.load(x + i), tl.load(x + i)))

@triton.jit
def broken(x, out, N: tl.constexpr):
    tl.store(out, no_such_name)

if __name__ == "__main__":
    for kernel, n in ((spilling, 16384), (multiplying, 64), (broken, 1)):
        types = {"x": "*fp16" if kernel is multiplying else "*fp32", "out": "*fp32"}
        result = report(AotCase(kernel.__name__, kernel, types, {"N": n}, {"num_warps": 1}), 90)
        print(result.failed, result.spilled_bytes > 0, result.tensor_core > 0, bool(result.error))
"""


def test_a_spill_a_tensor_core_instruction_and_a_failure_are_seen(tmp_path):
    script = tmp_path / "bad_kernels.py"
    script.write_text(BAD_KERNELS)
    finished = run_python(str(script))
    assert finished.stdout.splitlines() == [
        "True True False False",
        "False False True False",
        "True False False True",
    ], finished.stderr


def test_the_exit_code_is_one_where_a_case_fails():
    broken_assembler = {"PTXAS_OPTIONS": "--no-such-option", "TRITON_ALWAYS_COMPILE": "1"}
    finished = check("--match", "augment_batch fp32 contiguous", **broken_assembler)
    assert finished.returncode == 1
    assert finished.stdout.splitlines()[-2].split()[-1] == "FAILED"
    assert "sm_70 augment_batch fp32 contiguous: " in finished.stderr


def test_what_cannot_be_checked_is_refused_with_a_reason():
    interpreted = check(TRITON_INTERPRET="1")
    assert interpreted.returncode == 2 and "unset it" in interpreted.stderr
    unmatched = check("--match", "no such case")
    assert unmatched.returncode == 2 and "'no such case'" in unmatched.stderr
