"""What stands on a node of a cluster: a slot with one worker process, whose files are fetched."""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import lion_fast
from lion_fast.config import TrainConfig
from lion_fast.data.sources import EMBEDDED
from lion_fast.study.pools import Ended, Result, Trainer
from lion_fast.study.pools.local import LocalPool, Worker
from lion_fast.study.pools.worker import Lend

Files = Mapping[str, bytes]
"""Path below a cell's folder, and what the file holds."""

_NOT_SENT = ("run.lock", "checkpoint.previous.pt")


class Software(NamedTuple):
    """What decides a run's numbers besides its config."""

    version: str
    """Of lion-fast."""
    code: str
    """Digest of its sources."""
    torch: str | None


def software() -> Software:
    """Return what is installed here; torch is not imported."""
    digest = hashlib.sha256()
    for name, path in sorted(_sources().items()):
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = None
    return Software(lion_fast.__version__, digest.hexdigest()[:12], torch)


def _sources() -> dict[str, Path]:
    """Return the package's files by name; in a source tree its kernels stand elsewhere."""
    spec = find_spec("lion_fast.kernels")
    roots = {"": Path(lion_fast.__file__).parent}
    for place in (spec and spec.submodule_search_locations) or ():
        roots["kernels/"] = Path(place)
    return {
        f"{prefix}{path.relative_to(root)}": path
        for prefix, root in roots.items()
        for path in root.rglob("*.py")
    }


class Slot:
    """Runs one cell at a time in a worker process, in a folder of this node's own.

    Its methods may be called from several threads: `files` and `stop` while `run` is under way.
    """

    def __init__(self, trainer: Trainer, jobs: int, num_threads: int, has_gpu: bool) -> None:
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
        if not has_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        _sweep()
        self.scratch, self.scratch_lock = _own_folder()
        self.pool = LocalPool(jobs, trainer)
        self.worker: Worker | None = None
        self.lent: set[str] = set()
        self.out = Path()
        self.sent: dict[Path, tuple[int, int]] = {}
        self.is_stopped = False
        self.lock = threading.Lock()

    def hello(self) -> tuple[str, str, Software]:
        """Return Ray's name of this node, its own name, and what is installed on it."""
        import ray

        return ray.get_runtime_context().get_node_id(), os.uname().nodename, software()

    def process_ids(self) -> tuple[int, ...]:
        """Return Ray's process on this node, this slot's own, and its worker's, if there is one."""
        worker = () if self.worker is None else (self.worker.process.pid or 0,)
        return os.getppid(), os.getpid(), *worker

    def run(self, config: TrainConfig, left: Files, arrays: Any) -> tuple[Result | Ended, Files]:
        """Run a cell; return what became of it, and its files.

        left: files of an earlier attempt, to go on with. arrays: the data set; None where it is at
        hand by its name.
        """
        if arrays is None and config.dataset not in EMBEDDED and not Path(config.dataset).is_dir():
            text = f"dataset {config.dataset} is a folder that node {os.uname().nodename} does not"
            return Result("failed", f"{text} see: put it at the same path on every node"), {}
        home = config.out
        with self.lock:
            self.out, self.sent = self.scratch / home.name, {}
            for name, data in left.items():
                (self.out / name).parent.mkdir(parents=True, exist_ok=True)
                (self.out / name).write_bytes(data)
            if self.is_stopped:
                return Ended("stopped before it began"), {}
            self._give(replace(config, out=self.out), arrays)
        news = self._next_news()
        if isinstance(news, Ended):
            self.worker, self.lent = None, set()
        elif news.state == "done":
            told = _moved(json.dumps(news.values), self.out, home)
            news = news._replace(values=json.loads(told))
            for checkpoint in self.out.glob("*/checkpoint*.pt"):
                checkpoint.unlink()
        with self.lock:
            self.sent = {}
            files = self._changed(home)
            shutil.rmtree(self.out, ignore_errors=True)
        return news, files

    def files(self, home: Path) -> Files:
        """Return what has changed since the last call of the files of the cell of folder `home`."""
        with self.lock:
            return self._changed(home) if self.out.name == home.name else {}

    def stop(self, number: signal.Signals) -> None:
        """Let the worker act as if the signal had come to it; run nothing from now on."""
        with self.lock:
            self.is_stopped = True
            self.pool.stop(number)

    def end(self) -> None:
        """End the worker and leave nothing behind."""
        self.pool.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
        os.close(self.scratch_lock)

    def _give(self, config: TrainConfig, arrays: Any) -> None:
        if self.worker is None:
            self.worker = self.pool.open()
        if arrays is not None and config.dataset not in self.lent:
            self.pool.lend(self.worker, Lend(config.dataset, arrays))
            self.lent.add(config.dataset)
        self.pool.give(self.worker, config)

    def _next_news(self) -> Result | Ended:
        while True:
            for _, news in self.pool.hear(60.0):
                return news

    def _changed(self, home: Path) -> Files:
        changed = {}
        for path in self.out.glob("*/*"):
            if path.name in _NOT_SENT or path.suffix == ".tmp" or not path.is_file():
                continue
            with suppress(FileNotFoundError):  # a checkpoint that is being replaced
                stamp = path.stat().st_mtime_ns, path.stat().st_size
                if self.sent.get(path) == stamp:
                    continue
                data = path.read_bytes()
                if path.suffix == ".json":
                    data = _moved(data.decode(), self.out, home).encode()
                changed[str(path.relative_to(self.out))] = data
                self.sent[path] = stamp
        return changed


def _own_folder() -> tuple[Path, int]:
    """Return a new folder, and a lock on it that ends with this process."""
    new = Path(tempfile.mkdtemp(prefix="lion-fast-new-"))
    lock = os.open(new / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.lockf(lock, fcntl.LOCK_EX)
    # Only now may it be taken for one that somebody has left.
    folder = new.with_name(new.name.replace("-new-", "-slot-"))
    new.rename(folder)
    return folder, lock


def _sweep() -> None:
    """Remove the folders of slots that were killed."""
    for folder in Path(tempfile.gettempdir()).glob("lion-fast-slot-*"):
        with suppress(OSError), open(folder / "lock", "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def _moved(text: str, here: Path, home: Path) -> str:
    """Return JSON that names `home` where it named `here`, for what it tells of lies there."""
    return text.replace(json.dumps(str(here))[1:-1], json.dumps(str(home))[1:-1])
