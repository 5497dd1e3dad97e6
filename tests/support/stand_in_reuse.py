"""Two runs that share a step, on the stand-in: `stand_in_reuse.py CARD FOLDER RUN...`.

A RUN is that of stand_in_runs.py. Prints {run: outcome} as JSON; a result holds, for each of the
two, whether it was reused and how the GPU was used.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import stand_in_gpu
from stand_in_gpu.processes import in_own_process
from stand_in_runs import config_of, import_ahead, make_images, usage


def train_twice(gpu: stand_in_gpu.Gpu, run: str, dataset: Path, out: Path) -> list[dict[str, Any]]:
    from lion_fast.training import StepCache, train

    cache, found = StepCache(), []
    config = config_of(run, dataset, out)
    for each in (config, replace(config, seed=1, init="he", aux_weight=0.1)):
        gpu.clear()
        summary = train(each, reuse=cache)
        used = usage(gpu.records())
        found.append({"reused": summary.reused} | used)
    return found


def main() -> int:
    card, folder, *runs = sys.argv[1:]
    gpu = stand_in_gpu.load(card)
    import_ahead()
    dataset = make_images(Path(folder))
    outcomes = {
        run: in_own_process(train_twice, gpu, run, dataset, Path(folder, "runs")) for run in runs
    }
    print(json.dumps(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
