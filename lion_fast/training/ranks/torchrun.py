"""Which process of a run this one is, as torchrun tells it; imports nothing heavy."""

import os
from typing import NamedTuple

from lion_fast.errors import UserError


class Ranks(NamedTuple):
    """One of `size` processes that train one network together; alone by default."""

    rank: int = 0
    """Position among all processes; 0 leads: it alone writes and speaks."""
    size: int = 1
    local_rank: int = 0
    """Position among those of the same machine: the number of its GPU."""
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0


def meeting_place() -> str:
    """Return where torchrun lets processes meet, as HOST:PORT."""
    return ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))


def ranks_here() -> Ranks:
    """Return what torchrun's environment variables say; alone without them.

    Raises UserError where they are incomplete or no numbers.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return Ranks()
    values = []
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        text = os.environ.get(name, "")
        if not text.isdecimal():
            raise UserError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {name} is {text!r}: start the"
                " processes with torchrun, or unset WORLD_SIZE"
            )
        values.append(int(text))
    return Ranks(*values)
