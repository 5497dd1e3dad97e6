"""Runs on the nodes of a Ray cluster: actors that each own a worker process like a local one.

No shared file system is needed. The driver alone has the store and the run folders; it sends what
an attempt has left and the data set, the latter once a node, and fetches what a run writes.
"""

import os
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lion_fast.config import TrainConfig
from lion_fast.errors import UserError
from lion_fast.study.pools import Ended, MakePool, Result, Trainer
from lion_fast.study.pools.connecting import connect
from lion_fast.study.pools.node import Files, Slot, Software, software
from lion_fast.study.pools.worker import unfinished_run

FETCH_SECONDS = 5.0
"""Between two looks for files that runs in flight have changed."""
_NODE_SECONDS = 30.0
"""In which a cluster notices that a node has gone; until then it would start actors there."""


def ray_pool(
    address: str,
    *,
    jobs: int | None = None,
    gpus_per_run: float | None = None,
    cpus_per_run: int | None = None,
) -> MakePool:
    """Return what opens a pool on the Ray cluster at `address`: local, auto or HOST:PORT.

    local starts one on this machine, auto finds the one that this machine is a node of. jobs: runs
    at a time at most; by default as many as fit. Raises UserError on values that cannot be meant
    and where Ray is not installed; the pool, where no cluster answers or none of its nodes has room
    for a run.
    """
    if address not in ("local", "auto") and not re.fullmatch(r"[\w.-]+:\d{1,5}", address):
        raise UserError(f"ray is {address!r}: give local, auto or HOST:PORT")
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs is {jobs}: it must be at least 1")
    if gpus_per_run is not None and not 0 < gpus_per_run <= 1:
        raise UserError(
            f"gpus_per_run is {gpus_per_run}: give a share of a GPU, above 0 and at most 1, or"
            " leave it out for runs on the CPU"
        )
    if cpus_per_run is not None and cpus_per_run < 1:
        raise UserError(f"cpus_per_run is {cpus_per_run}: it must be at least 1")
    if find_spec("ray") is None:
        raise UserError("--ray needs Ray: pip install 'lion-fast[ray]'")
    share = Share(cpus_per_run or 1, gpus_per_run or 0.0)
    return partial(RayPool, address=address, jobs=jobs, share=share)


@dataclass(frozen=True)
class Share:
    """What of a node a run has for itself."""

    cpus: int
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")

    def fits(self, node: dict[str, Any]) -> int:
        """Return how many runs a node, as `ray.nodes()` tells of it, has room for."""
        if not node["Alive"]:
            return 0
        has = node["Resources"]
        by_cpus = int(has.get("CPU", 0) // self.cpus)
        if not self.gpus:
            return by_cpus
        # Ray gives a run its share of one GPU, not of two.
        return min(by_cpus, int(has.get("GPU", 0)) * int(1 / self.gpus + 1e-9))


@dataclass(eq=False)
class RaySlot:
    """An actor, and what is known of it."""

    actor: Any
    config: TrainConfig | None = None
    """The cell that it has been given."""
    node: str | None = None
    """Known once it runs: until then it waits for room on a node."""
    lost: str = ""
    """How it was lost, if it was."""
    lost_at: float = 0.0


class RayPool:
    """Implements Pool."""

    def __init__(self, trainer: Trainer, *, address: str, jobs: int | None, share: Share) -> None:
        self.share, self.jobs = share, jobs
        self.slots: set[RaySlot] = set()
        self.calls: dict[Any, tuple[str, RaySlot]] = {}
        self.news: list[tuple[RaySlot, Result | Ended]] = []
        self.data: dict[str, Any] = {}
        self.software = software()
        self.next_fetch = 0.0
        self.ray, self.is_connected_here = connect(address)
        try:
            beside = max(map(share.fits, self.ray.nodes())) if self.num_slots else 1
        except UserError:
            self.close()
            raise
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_concurrency": 4}
        actor_class = self.ray.remote(**options, scheduling_strategy="SPREAD")(Slot)
        self._start_actor = partial(actor_class.remote, trainer, beside, share.cpus, share.gpus > 0)

    @property
    def num_slots(self) -> int:
        """Runs that the nodes which are alive have room for, at most `jobs`."""
        room = sum(map(self.share.fits, self.ray.nodes()))
        if not room:
            raise UserError(
                f"a run is to have {self.share}, and no node of the Ray cluster has that much: it"
                f" has {_described(self.ray.nodes())}; lower --cpus-per-run or --gpus-per-run, or"
                " add a node"
            )
        return min(room, self.jobs or room)

    def notes(self, num_runs: int) -> list[str]:
        """Say where the runs go, and whether some of them wait for others that are there."""
        together, free = min(num_runs, self.num_slots), self.ray.available_resources()
        where = _described(self.ray.nodes())
        told = [f"Ray: {where}; {together} runs at a time, {self.share} each"]
        wanted = {"CPU": together * self.share.cpus, "GPU": together * self.share.gpus}
        if any(free.get(name, 0) < amount for name, amount in wanted.items()):
            told.append("others use part of the cluster now: runs beyond what is free wait for it")
        return told

    def open(self) -> RaySlot:
        """Start an actor, which may wait for room on a node."""
        slot = RaySlot(self._start_actor())
        self.slots.add(slot)
        self._call("hello", slot, slot.actor.hello.remote())
        return slot

    def give(self, slot: RaySlot, config: TrainConfig) -> None:
        """Let it run a cell."""
        if config.device.startswith("cuda") and not self.share.gpus:
            raise UserError(
                f"device is {config.device!r} and runs have no GPU: give --gpus-per-run"
            )
        slot.config = config
        if slot.node is not None:
            self._start_run(slot)

    def retire(self, slot: RaySlot) -> None:
        """Let it end."""
        slot.config = None
        self._call("end", slot, slot.actor.end.remote())

    def hear(self, seconds: float) -> list[tuple[RaySlot, Result | Ended]]:
        """Wait for results and deaths, at most so long; fetch files meanwhile."""
        deadline = time.monotonic() + seconds
        while True:
            self._settle_lost()
            if self.news or time.monotonic() >= deadline:
                news, self.news = self.news, []
                return news
            if time.monotonic() >= self.next_fetch:
                self._ask_for_files()
            soon = time.monotonic() + 0.5 if any(slot.lost for slot in self.slots) else deadline
            pause = max(0.0, min(deadline, self.next_fetch, soon) - time.monotonic())
            if not self.calls:
                time.sleep(pause)
                continue
            for ref in self.ray.wait([*self.calls], num_returns=1, timeout=pause)[0]:
                self._answer(ref)

    def stop(self, number: signal.Signals) -> None:
        """Let each run act as if the signal had come to it."""
        busy = {slot for kind, slot in self.calls.values() if kind in ("run", "end")}
        for slot in list(self.slots):
            if slot in busy:
                slot.actor.stop.remote(number)
            else:  # it had not begun, or the signal fell between its answer and the runner
                self._forget(slot, Ended("stopped"))

    def close(self) -> None:
        """Kill every actor; its worker ends with it."""
        for slot in self.slots:
            self.ray.kill(slot.actor)
        if self.is_connected_here:
            self.ray.shutdown()

    def _call(self, kind: str, slot: RaySlot, ref: Any) -> None:
        self.calls[ref] = kind, slot

    def _answer(self, ref: Any) -> None:
        """Take in what an actor answers."""
        from ray.exceptions import RayActorError, RayError, RayTaskError

        kind, slot = self.calls.pop(ref)
        try:
            said = self.ray.get(ref)
        except RayTaskError as error:
            if kind == "hello":
                raise _unfit(error) from None
            self._forget(slot, Ended(str(error)))  # such as a node's disk that is full
            return
        except RayError as error:
            if isinstance(error, RayActorError) and error.actor_init_failed:
                raise _unfit(error) from None
            self._lose(slot, str(error))
            return
        if kind == "hello":
            self._greet(slot, *said)
        elif kind == "files":
            self._write(slot, said)
        elif kind == "run":
            self._end_run(slot, *said)
        else:
            self._forget(slot, Ended("let go"))

    def _greet(self, slot: RaySlot, node: str, host: str, found: Software) -> None:
        """Note where the actor runs; raise UserError where its code is another."""
        for name, there, here in zip(Software._fields, found, self.software, strict=True):
            if there != here:
                what = {"version": "lion-fast", "code": "lion-fast's code", "torch": "torch"}[name]
                raise UserError(
                    f"node {host} has {what} {there}, and this machine has {here}: install the same"
                    " on every node"
                )
        slot.node = node
        if slot.config is not None:
            self._start_run(slot)

    def _start_run(self, slot: RaySlot) -> None:
        from lion_fast.training.machine.paths import anchored

        assert slot.config is not None
        slot.config = anchored(slot.config)
        try:
            arrays = self._data_of(slot.config)
        except UserError as error:
            self.news.append((slot, Result("failed", str(error))))
            return
        left: Files = {}
        if (folder := unfinished_run(slot.config.out)) is not None:
            paths = [folder / "config.json", *folder.glob("checkpoint*.pt")]
            left = {str(path.relative_to(slot.config.out)): path.read_bytes() for path in paths}
        self._call("run", slot, slot.actor.run.remote(slot.config, left, arrays))

    def _data_of(self, config: TrainConfig) -> Any:
        """Return the data set in the cluster's object store; None where nodes find it by name."""
        from lion_fast.data.sources import BUILT_IN, read_arrays

        name = config.dataset
        if name == "digits" or (name not in BUILT_IN and Path(name).is_dir()):
            return None
        if name not in self.data:
            self.data[name] = self.ray.put(read_arrays(config))
        return self.data[name]

    def _ask_for_files(self) -> None:
        self.next_fetch = time.monotonic() + FETCH_SECONDS
        asked = {slot for kind, slot in self.calls.values() if kind == "files"}
        running = {slot for kind, slot in self.calls.values() if kind == "run"}
        for slot in running - asked:
            assert slot.config is not None
            self._call("files", slot, slot.actor.files.remote(slot.config.out))

    def _end_run(self, slot: RaySlot, news: Result | Ended, files: Files) -> None:
        self._write(slot, files)
        self._drop_calls(slot)  # an older answer would bring back older files
        slot.config = None
        if isinstance(news, Ended):
            self._forget(slot, news)
        else:
            self.news.append((slot, news))

    def _write(self, slot: RaySlot, files: Files) -> None:
        """Write files of the cell below its folder, each whole or not at all."""
        assert slot.config is not None
        for name, data in files.items():
            path = slot.config.out / name
            unfinished = path.with_name(f"{path.name}.tmp")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                unfinished.write_bytes(data)
                os.replace(unfinished, path)
            except OSError as error:
                raise UserError(
                    f"cannot write {path}: {error.strerror}: see to its disk and start again"
                ) from None

    def _lose(self, slot: RaySlot, why: str) -> None:
        """Give up an actor that has died; it is heard of once the cluster knows of its node."""
        self._drop_calls(slot)
        slot.lost = " ".join(why.split())[:200] or "its actor has died"
        slot.lost_at = time.monotonic()
        self.ray.kill(slot.actor)

    def _settle_lost(self) -> None:
        lost = [slot for slot in self.slots if slot.lost]
        if not lost:
            return
        alive = {node["NodeID"] for node in self.ray.nodes() if node["Alive"]}
        for slot in lost:
            if slot.node and slot.node not in alive:
                self._forget(slot, Ended("its node has gone", is_lost=True))
            elif time.monotonic() > slot.lost_at + _NODE_SECONDS:
                self._forget(slot, Ended(slot.lost, is_lost=True))

    def _forget(self, slot: RaySlot, end: Ended) -> None:
        self._drop_calls(slot)
        self.slots.remove(slot)
        self.ray.kill(slot.actor)
        self.news.append((slot, end))

    def _drop_calls(self, slot: RaySlot) -> None:
        self.calls = {ref: call for ref, call in self.calls.items() if call[1] is not slot}


def _described(nodes: list[dict[str, Any]]) -> str:
    """Return what the nodes that are alive have, in words."""
    kinds = Counter(
        (int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("GPU", 0)))
        for node in nodes
        if node["Alive"]
    )
    words = [
        f"{number} node{'s' * (number > 1)} of {cpus} CPU and {gpus or 'no'} GPU"
        for (cpus, gpus), number in sorted(kinds.items(), reverse=True)
    ]
    return ", ".join(words) or "no node left"


def _unfit(error: Exception) -> UserError:
    """Return what a node says that cannot even start an actor of ours."""
    last = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
    return UserError(
        f"a node of the Ray cluster cannot run lion-fast ({last.strip()[:200]}): install the same"
        " lion-fast on every node"
    )
