"""Stage `persistent` of a call on a card: its exchange is right, all its questions are asked."""

import json
import subprocess
import sys

import emulator
import pytest
import torch
from persistent_cubins import compile_persistent
from stand_in import TESTS, needs_stand_in, noting_environment

from gpu.persistent import REPLAYS, ROUNDS, Rounds

PROGRAMS = 5


@emulator.needs_compiler
def test_the_exchange_that_is_timed_hands_every_word_to_all(tmp_path):
    kernels = emulator.build(
        tmp_path, emulator.FOLDER / "exchange.cpp", {"HALF_IS_FP16": 0}, is_checked=True
    )
    words = torch.zeros(3, PROGRAMS, dtype=torch.int64)
    out = torch.full((PROGRAMS,), torch.nan)
    kernels.run(
        "dense_persistent_rounds", Rounds(words.data_ptr(), out.data_ptr(), 3),
        {"words": words, "out": out}, ("words",),
        programs=PROGRAMS, threads=64, shared_bytes=0, seed=1,
    )  # fmt: skip
    assert (out == (PROGRAMS - 1) / 2).all()
    assert (words >> 32 == 1).all()


@pytest.mark.slow
@needs_stand_in
def test_all_questions_are_asked_and_steps_are_timed_beside_the_fused_backbones(
    tmp_path, kernel_cache
):
    env = noting_environment("H100", kernel_cache)
    compile_persistent(env["TRITON_CACHE_DIR"])
    out = tmp_path / "out"
    command = [sys.executable, str(TESTS.parent / "bench" / "gpu" / "card.py"), "--rehearse"]
    command += ["--stages", "persistent", "--out", str(out), "--commit", "abc"]
    command += ["--folder", str(tmp_path / "folder")]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    found = [json.loads(line) for line in (out / "card.jsonl").read_text().splitlines()]
    assert [line["code"] for line in found if "ends" in line] == [0]
    # Nothing computes there, and its cuBLAS has no product in fp64.
    errors = [line for line in found if "error" in line and "CUBLAS" not in line["error"]]
    assert errors == []
    timed = {name for line in found for name in line.get("round_ms", ())}
    rounds = {"1 rounds", f"{ROUNDS} rounds"}
    assert timed == rounds | {"forward, 6 layers", "both, 6 layers", "fused", "persistent"}
    assert any(line.get("what") == "beside" for line in found) and REPLAYS == 10_000
    assert any(line.get("config") == "persistent" for line in found)
