"""Findings of a call on a card: one JSON line each in OUT/card.jsonl, on disk as it comes."""

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn


def leave(code: int = 0) -> NoReturn:
    """End this process without the exit handlers of the one that it is a copy of."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@dataclass(frozen=True)
class Call:
    """What every stage of one call knows."""

    out: Path
    rehearse: bool = False
    """Two rounds, one case, nothing compiled: to see in seconds that a stage runs to its end."""
    data_dir: Path | None = None
    """Folder that holds cifar10.npz; synthetic images where there is none, all that speed needs."""
    commit: str | None = None
    start: float = field(default_factory=time.monotonic)

    def say(self, stage: str, **found: Any) -> None:
        """Append a finding, and show it; nothing found so far is lost by whatever comes."""
        seconds = round(time.monotonic() - self.start, 1)
        line = json.dumps({"t": seconds, "stage": stage, **found}, default=str)
        sys.stdout.write(line[:400] + "\n")
        sys.stdout.flush()
        with open(self.out / "card.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
