import shutil
import subprocess
import sys

import pytest
import stand_in_gpu
from stand_in import TESTS, needs_stand_in, outcomes

pytestmark = needs_stand_in

REFUSED = {
    "host_wait": "cudaStreamSynchronize of captured work",
    "device_wait": "cudaDeviceSynchronize in a capture",
    "event_wait": "cudaEventSynchronize of captured work",
    "wait_of_another_thread": "cudaDeviceSynchronize in a capture",
    "unpinned_copy": "unless the CPU tensor is pinned",
    "unpinned_copy_behind_pytorch": "a copy of unpinned host memory in a capture",
    "legacy_stream": "use of the legacy stream in a capture",
    "legacy_stream_waits": "the legacy stream waits for captured work",
    "unjoined_stream": "a stream of the capture was not joined",
    "half_joined_stream": "a stream of the capture was not joined",
    "event_from_outside": "a capture waits for an event from outside",
    "event_of_an_ended_capture": "an event of a capture that has ended",
    "clock_across_the_capture": "of captured work",
    "query_in_a_global_capture": "cudaEventQuery is not permitted in a capture",
    "allocation_behind_pytorch": "cudaMalloc is not permitted in a capture",
    "graph_of_freed_memory": "device memory that was freed after its capture",
    "freed_memory": "a copy or fill of freed device memory",
    "out_of_memory": "CUDA out of memory",
    "cooperative_grid_too_large": "a cooperative grid that does not fit the GPU",
}
LAWFUL = {
    "legal_pinned_copy": 1,
    "legal_joined_stream": 2,
    "legal_graph_of_live_memory": 1,
    "legal_cooperative_grid": 1,
    # Pinned memory reads as NaN until the host has waited for the copy, and for that copy's stream.
    "host_reads_early": [True, True],
    "host_waits_for_another_stream": True,
}


@pytest.fixture(scope="module")
def breaches(tmp_path_factory):
    return outcomes("stand_in_breaches.py", cache=tmp_path_factory.mktemp("cache"))


def test_every_breach_is_refused_for_its_own_reason(breaches):
    for name, reason in REFUSED.items():
        assert reason in breaches[name].get("error", "no error"), name


def test_what_cuda_allows_passes(breaches):
    assert {name: breaches[name].get("result") for name in LAWFUL} == LAWFUL


def test_every_breach_is_judged(breaches):
    assert set(breaches) == set(REFUSED) | set(LAWFUL)


def test_a_process_keeps_the_stand_in_that_it_was_started_with(tmp_path):
    """One of another checkout would share its record, and not the size of it."""
    shutil.copytree(TESTS / "stand_in_gpu", tmp_path / "stand_in_gpu")
    with open(tmp_path / "stand_in_gpu" / "csrc" / "record.c", "a", encoding="utf-8") as source:
        source.write("/* of another checkout */\n")
    env = stand_in_gpu.environment("H100")
    code = "import stand_in_gpu; stand_in_gpu.load('H100'); print(open('/proc/self/maps').read())"
    mapped = subprocess.run(
        [sys.executable, "-c", code],
        env=env | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    loaded = {line.split()[-1] for line in mapped.splitlines() if line.endswith("libcuda.so.1")}
    assert loaded == {env["LD_PRELOAD"]}
