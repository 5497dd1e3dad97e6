"""Drivers and trainers of the tests on a Ray cluster; both run outside the test's process.

    python ray_runs.py cluster            three nodes of one CPU, until standard input ends
    python -c 'import ray_runs; ...'      a study with one of the trainers below

Trainers note what they do in `config.data_dir`, for a node's own folders are gone with it.
"""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import fake_study as fake

import lion_fast
from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.study import runner
from lion_fast.study.grid import Study, grid
from lion_fast.study.pools import cluster
from lion_fast.study.pools.worker import train_cell
from lion_fast.study.runner import run_study
from lion_fast.study.stopping import signal_of

PAUSED_AT = 20
REAL = Study(
    name="real",
    title="Real",
    base=TrainConfig(
        device="cpu",
        growth_rate=2,
        block_layers=1,
        batch_size=32,
        window=5,
        max_steps=30,
        checkpoint_every=0,
        log_every=10,
    ),
    variants=grid(init=("he", "lion_dg", "lsuv")),
    seeds=(1, 2, 3, 4),
)
ONE = replace(REAL, variants=grid(init=("he",)), seeds=(1,)).override(max_steps=3)


def slow_train(config, resume, jobs):
    return fake.fake_train(config, resume, jobs, seconds_per_step=0.5)


def train_in_two_parts(config, resume, jobs):
    """Train; the first seed's runs wait at a checkpoint until a node has been killed."""
    from lion_fast.training.folder.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(resume) if resume else None
    fake.log(config, f"from-{len(checkpoint['history']) if checkpoint else 0}")
    if config.seed == REAL.seeds[0] and resume is None:
        resume = train_cell(replace(config, max_steps=PAUSED_AT), None, jobs).run
        fake.log(config, "paused")
        while not (config.data_dir / "killed").exists():
            time.sleep(0.05)
    return train_cell(config, resume, jobs)


def train_without_the_file(config, resume, jobs):
    Path(config.dataset).unlink(missing_ok=True)
    return train_cell(config, resume, jobs)


def kill_a_node(pool, folder):
    """Kill a node that the driver is not on, once a paused run's checkpoint has been fetched."""
    import ray

    noted = folder / "log.txt"
    if (folder / "killed").exists() or not noted.exists():
        return
    here = ray.get_runtime_context().get_node_id()
    for slot in pool.slots:
        if slot.node in (None, here) or slot.config is None or slot.lost:
            continue
        if f"paused {slot.config.init} " not in noted.read_text():
            continue
        if list(slot.config.out.glob("*/checkpoint.pt")):
            for pid in ray.get(slot.actor.process_ids.remote()):
                os.kill(pid, signal.SIGKILL)
            (folder / "killed").write_text(slot.config.init)
            return


def run(study, folder, address, trainer, *, watch=None, code=None, **options):
    """Run a study on the cluster; exit as the command does."""
    cluster.FETCH_SECONDS = 0.2
    runner.PROGRESS_SECONDS = 0.2
    folder = Path(folder)
    if code:
        cluster.software = lambda: cluster.Software(lion_fast.__version__, code, None)
    open_pool = cluster.ray_pool(address, **options)

    def make_pool(given):
        pool = open_pool(given)
        if watch:
            hear = pool.hear

            def hear_and_watch(seconds):
                watch(pool, folder)
                return hear(seconds)

            pool.hear = hear_and_watch
        return pool

    try:
        study = study.override(data_dir=folder)
        outcome = run_study(study, folder, trainer=trainer, make_pool=make_pool)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        sys.exit(128 + signal_of(stop))
    print(outcome)


def simulate_cluster():
    """Start three nodes of one CPU each; say the address; end when standard input does."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    nodes = Cluster(initialize_head=True, head_node_args=node)
    for _ in range(2):
        nodes.add_node(wait=False, **node)
    nodes.wait_for_nodes()
    print(f"address {nodes.address}", flush=True)
    sys.stdin.read()
    nodes.shutdown()


if __name__ == "__main__":
    simulate_cluster()
