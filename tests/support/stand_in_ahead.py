"""A first run on the stand-in, whose kernels are compiled ahead: `stand_in_ahead.py CARD FOLDER`.

Prints JSON of a first run and of a second one: what it said, and how many kernels it compiled in
this process, and found compiled, before it validated.

Private API: knobs.compilation.listener.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import stand_in_gpu
from stand_in_gpu.processes import leave

GPU = stand_in_gpu.load(sys.argv[1])

from triton import knobs  # noqa: E402

from lion_fast.config import TrainConfig  # noqa: E402
from lion_fast.training import train  # noqa: E402
from lion_fast.training.screen.console import Silent  # noqa: E402


class Listening(Silent):
    """Remembers what is said and done."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, lines: Any) -> None:
        self.heard += lines

    def stage(self, text: str) -> Any:
        self.heard.append(text)
        return super().stage(text)


def run(folder: Path) -> dict[str, Any]:
    found = {"compiled": 0, "found": 0}
    screen = Listening()

    def listen(*, cache_hit: bool, **_: Any) -> None:
        # Validation has kernels of its own, which no step launches.
        if "validating" not in screen.heard:
            found["found" if cache_hit else "compiled"] += 1

    knobs.compilation.listener = listen
    config = TrainConfig(
        device="cuda", engine="graph", graph_compile=False, backbone="fused", block_layers=1,
        batch_size=32, max_steps=8, precision="bf16", out=folder,
    )  # fmt: skip
    train(config, console=screen)
    return {**found, "heard": screen.heard}


if __name__ == "__main__":
    print(json.dumps([run(Path(sys.argv[2])) for _ in range(2)]))
    leave()
