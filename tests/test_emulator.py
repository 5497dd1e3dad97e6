"""The emulated processors: each check finds the fault that it is for, and nothing else."""

import ctypes

import emulator
import pytest
import torch

pytestmark = emulator.needs_compiler
PROGRAMS, N = 3, 64


class Faulty(ctypes.Structure):
    _fields_ = [
        ("inputs", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("words", ctypes.c_void_p),
        ("fault", ctypes.c_int),
    ]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulator")
    return emulator.build(
        folder, emulator.FOLDER / "faults.cpp", {"HALF_IS_FP16": 0}, is_checked=True
    )


def run(kernels, fault, seed=0, skip=None):
    """Return what the launch wrote."""
    tensors = {
        "in": torch.arange(float(N)),
        "out": torch.full((PROGRAMS, N), torch.nan),
        "words": torch.zeros(PROGRAMS, dtype=torch.int64),
    }
    arguments = Faulty(*(t.data_ptr() for t in tensors.values()), fault)
    kernels.run(
        "hand_on", arguments, tensors, ("in", "words"),
        programs=PROGRAMS, threads=N, shared_bytes=4 * N, seed=seed, skip=skip,
    )  # fmt: skip
    return tensors["out"]


@pytest.mark.parametrize("seed", range(6))
def test_a_right_kernel_gives_the_same_in_every_order_and_nothing_is_found(kernels, seed):
    expected = torch.arange(float(N)).roll(-1).view(-1, 2).flip(1).flatten()
    assert torch.equal(run(kernels, 0, seed), expected.expand(PROGRAMS, N))


FAULTS = {
    1: r"unwritten: thread \d+ of program 0 reads byte \d+ of shared memory .* nobody wrote",
    2: r"out of bounds: thread \d+ of program 0 writes 4 bytes at (an address|.* of program 1)",
    3: r"out of bounds: thread 63 of program 0 reads 4 bytes at an address outside",
    4: r"thread \d+ of program 0 writes byte \d+ of in, an input \(after .*faults.cpp:\d+\)",
    5: r"misaligned: thread \d+ of program 0 writes 4 bytes at byte \d+ of shared memory",
    6: r"deadlock; program 0: 63 threads wait at .*faults.cpp:\d+ for the others; program 1",
    7: r"threads of program 0 meet at .*faults.cpp:\d+ and at .*faults.cpp:\d+",
    8: r"race: thread \d+ of program 0 .* of shared memory .* and no barrier is between",
    9: r"threads of program 0 meet at .*faults.cpp:\d+ and at .*faults.cpp:\d+",
    10: r"race: .* of out .* no word with its fences is between",
    11: r"deadlock; .*program 0: .* wait at .*faults.cpp:\d+ for byte 8 of words",
    12: r"thread 0 of program 0 writes byte 0 of words a second time",
    13: r"race: .* of out .* no word with its fences is between",
    14: r"race: .* of out .* no word with its fences is between",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found_and_named(kernels, fault):
    with pytest.raises(emulator.Fault, match=FAULTS[fault]):
        run(kernels, fault)


@pytest.mark.parametrize("fault", [8, 10, 13])
def test_races_are_found_in_every_order(kernels, fault):
    for seed in range(1, 6):
        with pytest.raises(emulator.Fault, match="race"):
            run(kernels, fault, seed)


def test_a_barrier_can_be_left_out_and_is_missed(kernels):
    text = (emulator.FOLDER / "faults.cpp").read_text().splitlines()
    (line,) = [i for i, t in enumerate(text, 1) if t.startswith("    if (fault != 8) synchronise")]
    with pytest.raises(emulator.Fault, match="race"):
        run(kernels, 0, skip=("faults.cpp", line))
