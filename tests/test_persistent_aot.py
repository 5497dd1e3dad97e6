"""What the persistent kernels take on each GPU is committed, and held."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lion_fast.kernels.dense.plan import Plan
from lion_fast.kernels.persistent import aot, compile as compiler
from lion_fast.kernels.persistent.aot import FORMS, SHARED_BYTES, resources
from lion_fast.kernels.persistent.plan import PersistentPlan

needs_nvrtc = pytest.mark.skipif(
    compiler.compiler_obstacle() is not None, reason="needs cuda-bindings and NVRTC"
)
COMMITTED = Path(__file__).parent.parent / "bench" / "results" / "persistent_aot.txt"


def committed():
    """Cells by kernel, dtype and form, then target."""
    lines = COMMITTED.read_text().splitlines()
    heads = lines[1].split()
    rows = [line.split() for line in lines[2:]]
    return {tuple(r[:3]): dict(zip(heads, r[3:], strict=True)) for r in rows}


def test_every_kernel_dtype_form_and_target_is_committed():
    table = committed()
    kernels, dtypes, forms = map(set, zip(*table, strict=True))
    assert kernels == {"pack", "forward", "backward"}
    assert dtypes == {"bfloat16", "float16"} and forms == set(FORMS)
    assert len(table) == len(kernels) * len(dtypes) * len(forms)
    for (_, _, form), row in table.items():
        assert list(row) == [f"sm_{major}{minor}" for major, minor in SHARED_BYTES]
        for cell, shared_bytes in zip(row.values(), SHARED_BYTES.values(), strict=True):
            assert (cell == "-") == (FORMS[form].shared_bytes > shared_bytes)
    # A thread of 512 has 128 registers, and a program of an H100 227 KB. Nothing is spilled there.
    for cell in (row["sm_90"] for row in table.values()):
        registers, shared_bytes, local_bytes = map(int, cell.split("/"))
        assert registers <= 128 and shared_bytes <= 227 * 1024 and local_bytes == 0


@needs_nvrtc
def test_an_h100_takes_what_is_committed_and_a_second_compilation_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for found in resources(FORMS["resident"], torch.bfloat16, (9, 0)):
        assert found.cell == committed()[found.kernel, found.dtype, "resident"]["sm_90"]
    monkeypatch.setattr(compiler, "_compile", None)  # what is on the disk is not made again
    assert len(resources(FORMS["resident"], torch.bfloat16, (9, 0))) == len(compiler.FILES)
    assert len(list(tmp_path.rglob("*.cubin"))) == len(compiler.FILES)


@needs_nvrtc
def test_a_source_that_does_not_compile_says_what_nvrtc_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes = PersistentPlan(Plan(1, 32, 32, 24, 8, 12))
    too_large = compiler.definitions_of(sizes.definitions, torch.bfloat16)
    with pytest.raises(compiler.CompileError, match=r"sm_90: .*static assertion failed"):
        compiler.compiled(too_large, (9, 0))


@pytest.mark.slow
@pytest.mark.exhaustive
@needs_nvrtc
def test_the_committed_table_is_what_the_command_prints(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", aot.__name__],
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [
        line.rstrip() for line in done.stdout.splitlines()
    ] == COMMITTED.read_text().splitlines()
