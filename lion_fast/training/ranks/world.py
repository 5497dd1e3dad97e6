"""What processes that train one network together agree on; `meeting` is where they meet.

torchrun starts them. Every decision of a run follows from numbers that all of them have, so that
they stop, validate and save at the same step; what may fail on one alone is agreed upon, so that
none waits for another that has gone.
"""

import hashlib
import platform
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

import lion_fast
from lion_fast import kernels
from lion_fast.config import TrainConfig
from lion_fast.errors import SaidElsewhere, UserError
from lion_fast.training.machine.resolve import Resolved
from lion_fast.training.ranks.patience import Patience
from lion_fast.training.ranks.torchrun import Ranks

_Value = TypeVar("_Value")

# The longest that one process may be busy while others wait: a download of CIFAR-10.
TIMEOUT = timedelta(minutes=30)
# Where things lie may differ between machines; the data themselves are compared.
_MAY_DIFFER = ("dataset", "data_dir", "out")


class World:
    """The processes of one run; of size 1 it does nothing and costs nothing.

    Objects go through gloo, tensors through `group`: NCCL on GPUs, gloo on CPUs.
    """

    def __init__(self, ranks: Ranks = Ranks()) -> None:  # noqa: B008 - a tuple
        self.ranks = ranks
        self.group: dist.ProcessGroup | None = None
        self.patience = Patience(ranks)

    @property
    def rank(self) -> int:
        """Position of this process."""
        return self.ranks.rank

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.ranks.size

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.ranks.leads

    def share(self, value: _Value) -> _Value:
        """Return rank 0's value on every rank."""
        if self.size == 1:
            return value
        box = [value]
        with self._preparing():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: _Value) -> list[_Value]:
        """Return every rank's value, in order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._preparing():
            dist.all_gather_object(values, value)
        return values

    def _preparing(self) -> AbstractContextManager[None]:
        return self.patience.waiting("while they prepare the run", TIMEOUT.total_seconds())

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Run a block, without collectives in it, that some rank may not get through.

        Where one raises UserError, all do: rank 0 says whose it was and what, the others end with
        SaidElsewhere.
        """
        if self.size == 1:
            yield
            return
        failure: UserError | None = None
        try:
            yield
        except UserError as error:
            failure = error
        found = self.gather((str(failure) if failure else None, socket.gethostname()))
        failed = [(rank, text, host) for rank, (text, host) in enumerate(found) if text]
        if not failed:
            return
        rank, text, host = failed[0]
        common = len({text for text, _ in found}) == 1
        raise self._said_once(text if common else f"rank {rank} on {host}: {text}")

    def _said_once(self, text: str) -> UserError:
        return UserError(text) if self.leads else SaidElsewhere(text)

    def in_turn(self, function: Callable[[], _Value]) -> _Value:
        """Return what `function` returns on each rank; one of each machine goes first.

        It may download or fill a cache for the others. Raises as `agreed` does.
        """
        results: list[_Value] = []
        for goes_now in (self.ranks.local_rank == 0, self.ranks.local_rank != 0):
            with self.agreed():
                if goes_now:
                    results.append(function())
        return results[0]

    def placed(self, config: TrainConfig) -> TrainConfig:
        """Return `config` as this rank executes it: on a GPU of its own where there are GPUs.

        Raises UserError where there are not enough of them, and on a device that all would share.
        """
        if self.size > 1 and config.device.startswith("cuda:"):
            raise UserError(
                f"device is {config.device}, but each of {self.size} processes takes a GPU of its"
                " own: give --device cuda"
            )
        if self.size == 1 or config.device not in ("auto", "cuda"):
            return config
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            return config
        if self.ranks.local_rank >= count:
            raise UserError(
                f"{self.ranks.local_size} processes on this machine, which has {count} GPU(s):"
                f" start torchrun with --nproc-per-node {count}, or give --device cpu"
            )
        return replace(config, device=f"cuda:{self.ranks.local_rank}")

    def connect(self, config: TrainConfig, resolved: Resolved) -> None:
        """Check that all ranks run the same, and only then open the way for tensors.

        Raises UserError on other settings, code or choices of `auto` on some rank. A collective of
        NCCL among ranks that differ would hang.
        """
        if self.size == 1:
            return
        self._check_alike(config, resolved)
        if resolved.device.type != "cuda":
            self.group = dist.group.WORLD
            return
        self.patience.computes_on_cpu = False
        torch.cuda.set_device(resolved.device)
        # With device_id the communicator is formed here, before any capture.
        group = dist.new_group(backend="nccl", timeout=TIMEOUT, device_id=resolved.device)
        assert isinstance(group, dist.ProcessGroup)
        self.group = group

    def _check_alike(self, config: TrainConfig, resolved: Resolved) -> None:
        settings = {n: v for n, v in config.to_dict().items() if n not in _MAY_DIFFER}
        choices = resolved.to_dict() | {"device": resolved.device.type}
        first, *others = self.gather((code_digest(), settings | choices))
        for rank, (code, values) in enumerate(others, start=1):
            if code != first[0]:
                raise self._said_once(
                    f"rank {rank} runs other code than rank 0, or another torch or Python: install"
                    " the same on every machine"
                )
            differing = [
                f"{name} {value} and not {first[1][name]}"
                for name, value in values.items()
                if value != first[1][name]
            ]
            if differing:
                raise self._said_once(
                    f"rank {rank} differs from rank 0: {', '.join(differing)}: start every machine"
                    " with the same command"
                )

    def check_same_data(self, fingerprint: str) -> None:
        """Raise UserError where a rank's images are not those of rank 0."""
        first, *others = self.gather(fingerprint)
        for rank, other in enumerate(others, start=1):
            if other != first:
                raise self._said_once(
                    f"rank {rank} has other images than rank 0: give every machine the same data"
                )

    @torch.no_grad()
    def same_weights(self, model: nn.Module) -> None:
        """Give every rank the weights of rank 0, to the bit."""
        if self.size > 1:
            with self._preparing():
                for tensor in model.state_dict().values():
                    dist.broadcast(tensor, 0, group=self.group)


@cache
def code_digest() -> str:
    """Return a digest of this package's sources and of the versions of torch and Python."""
    digest = hashlib.sha256(f"{torch.__version__} {platform.python_version()}".encode())
    for package in (lion_fast, kernels):
        folder = Path(str(package.__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
