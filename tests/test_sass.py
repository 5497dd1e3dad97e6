"""Machine code whose counts are known is counted, and what a model makes of it is bounded."""

import subprocess

import pytest
from triton import knobs

from gpu.model import asked, chain_clocks, launch_model, norm, resident
from gpu.rates import H200, Rate
from gpu.sass import disassembled, parse

# Two loads before; three rounds of one store and of four rounds of two loads, one shuffle and one
# product; a store behind. `%p2` leaves in the middle, as a program without work does.
LOOPS = """
.version 8.0
.target sm_90a
.address_size 64
.visible .entry kernel(.param .u64 at)
{
  .reg .u64 %a, %lane; .reg .b32 %r<9>; .reg .f32 %f<5>; .reg .pred %p<3>;
  ld.param.u64 %a, [at];
  mov.u32 %r8, %tid.x;
  mul.wide.u32 %lane, %r8, 64;
  add.u64 %a, %a, %lane;
  ld.volatile.global.u32 %r1, [%a];
  ld.volatile.global.u32 %r2, [%a+4];
  setp.eq.u32 %p2, %r1, 7;
  @%p2 ret;
  mov.f32 %f1, 0f00000000; mov.f32 %f2, 0f00000000;
  mov.f32 %f3, 0f00000000; mov.f32 %f4, 0f00000000;
  mov.u32 %r3, 0;
OUTER:
  .pragma "nounroll";
  mov.u32 %r4, 0;
INNER:
  .pragma "nounroll";
  ld.volatile.global.u32 %r5, [%a+8];
  ld.volatile.global.u32 %r6, [%a+12];
  shfl.sync.bfly.b32 %r7, %r5, 1, 31, 0xffffffff;
  mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1, %f2, %f3, %f4}, {%r5, %r6, %r7, %r1},
    {%r2, %r6}, {%f1, %f2, %f3, %f4};
  add.u32 %r4, %r4, 1;
  setp.lt.u32 %p1, %r4, %r1;
  @%p1 bra INNER;
  st.volatile.global.f32 [%a+16], %f1;
  add.u32 %r3, %r3, 1;
  setp.lt.u32 %p1, %r3, %r2;
  @%p1 bra OUTER;
  st.volatile.global.v4.f32 [%a+32], {%f1, %f2, %f3, %f4};
  ret;
}
"""
_SUMS = ", ".join(f"%f{i}" for i in range(32))
WARP_GROUPS = f"""
.version 8.0
.target sm_90a
.address_size 64
.visible .entry kernel(.param .u64 at)
{{
  .reg .u64 %a; .reg .f32 %f<32>; .reg .b64 %d; .reg .pred %p;
  ld.param.u64 %a, [at];
  ld.volatile.global.u64 %d, [%a];
  setp.eq.u64 %p, %d, 0;
  {"".join(f"mov.f32 %f{i}, 0f3F800000; " for i in range(32))}
  wgmma.fence.sync.aligned;
  wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{_SUMS}}}, %d, %d, %p, 1, 1, 0, 0;
  wgmma.commit_group.sync.aligned;
  wgmma.wait_group.sync.aligned 0;
  {"".join(f"st.volatile.global.f32 [%a+{4 * i}], %f{i}; " for i in range(32))}
  ret;
}}
"""


def assembled(ptx, folder):
    """The code of a PTX kernel: by the assembler and the disassembler of Triton's wheel."""
    source, cubin = folder / "kernel.ptx", folder / "kernel.cubin"
    source.write_text(ptx)
    command = [knobs.nvidia.ptxas.path, "--gpu-name=sm_90a", "-lineinfo", source, "-o", cubin]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return parse(disassembled(cubin, knobs.nvidia.nvdisasm.path))


def executed(code, trips):
    """Kind -> how many of it a warp runs."""
    found = {}
    for ins, times in zip(code.instructions, code.executed(trips), strict=True):
        found[ins.kind] = found.get(ins.kind, 0) + times
    return found


@pytest.fixture(scope="module")
def loops(tmp_path_factory):
    return assembled(LOOPS, tmp_path_factory.mktemp("loops"))


def trips_by_depth(code, outer, inner):
    (around,) = code.loops
    return lambda loop: outer if loop is around else inner


def test_instructions_are_counted_by_kind_through_nested_loops(loops):
    found = executed(loops, trips_by_depth(loops, outer=3, inner=4))
    assert found["LDG"] == 2 + 3 * 4 * 2
    assert found["SHFL"] == found["MMA"] == 3 * 4
    assert found["STG"] == 3 + 1
    assert not any(ins.is_barrier for ins in loops.instructions)


def test_a_loop_of_no_trips_runs_nothing_inside(loops):
    found = executed(loops, trips_by_depth(loops, outer=3, inner=0))
    assert (found["LDG"], found["MMA"], found["STG"]) == (2, 0, 4)


def test_padding_behind_the_end_does_not_run(loops):
    ends = [i for i, ins in enumerate(loops.instructions) if ins.op == "EXIT" and not ins.guard]
    assert not any(loops.runs[ends[-1] + 1 :]) and all(loops.runs[: ends[-1] + 1])


def test_pipes_are_asked_by_width_and_shape(loops):
    times = loops.executed(trips_by_depth(loops, outer=3, inner=4))
    found = asked(loops.instructions, times, H200)
    assert found.tensor == pytest.approx(12 * 4 / H200.mma_share.value)
    assert found.shared == 26 + 3 + 4  # clocks of 32-bit accesses, and of a 128-bit one
    assert found.l2 * H200.l2_bytes.value == 26 * 128 + 3 * 128 + 512
    assert found.issue == sum(times)
    # Eight warps are two on each quarter, which have issue and tensor cores of their own.
    longest = max(2 * found.issue, 2 * found.tensor, 8 * found.shared, 8 * found.l2)
    assert found.busy(warps=8) == pytest.approx(longest)


def test_a_product_of_a_warp_group_costs_what_its_shape_says(tmp_path):
    code = assembled(WARP_GROUPS, tmp_path)
    (product,) = [ins for ins in code.instructions if ins.kind == "MMA"]
    assert product.op.startswith("HGMMA.64x64x16")
    assert product.tensor_clocks == 64 * 64 * 16 / 4 / 512 == 32
    # Its result is waited for, though no scoreboard says so.
    slow = H200.changed("mma", 10)
    times = [chain_clocks(code, lambda loop: 1, rates) for rates in (H200, slow)]
    assert times[1] - times[0] == pytest.approx(9 * H200.mma.value)


def test_a_chain_is_as_long_as_what_waits_for_each_other(loops):
    def chain(inner, rates=H200):
        return chain_clocks(loops, trips_by_depth(loops, outer=1, inner=inner), rates)

    # A round waits for a load, for the shuffle of it, and for the product of that.
    round_clocks = chain(5) - chain(4)
    waited = H200.memory.value + H200.shuffle.value
    assert waited <= round_clocks <= waited + 100
    slower = H200.changed("memory", 2)
    assert chain(5, slower) - chain(4, slower) == pytest.approx(round_clocks + H200.memory.value)


def test_a_launch_takes_waves_of_what_an_sm_holds(loops):
    def model(registers, programs):
        return launch_model(
            loops, trips_by_depth(loops, 3, 4), warps=8, registers=registers, shared_bytes=0,
            programs=programs, rates=H200,
        )  # fmt: skip

    one_wave, many = model(128, 132), model(128, 132 * 8)
    assert one_wave.resident == many.resident == resident(128, 0, 8) == 2
    assert many.chain_us == pytest.approx(4 * one_wave.chain_us)
    assert model(255, 132 * 8).us > many.us
    assert model(64, 132 * 8).us < many.us
    assert one_wave.us > H200.start.value


def test_an_sm_holds_what_registers_memory_and_warps_let_it():
    assert resident(registers=255, shared_bytes=1024, warps=8) == 1
    assert resident(registers=80, shared_bytes=1024, warps=8) == 3
    assert resident(registers=32, shared_bytes=100_000, warps=4) == 2
    assert resident(registers=32, shared_bytes=0, warps=4) == 16
    assert norm(3, 4) == 5


def test_every_rate_names_its_source_or_says_that_it_is_assumed():
    for name, rate in H200.items():
        assert isinstance(rate, Rate) and rate.value > 0 and rate.unit, name
        assert "assumed" in rate.source or "NVIDIA" in rate.source or "arXiv" in rate.source, name
