"""How far the emulated kernels' gradients are from fp64's: `python persistent_errors.py BATCH...`.

Of the paper's network in bf16, beside torch's own operators under autocast on the CPU, and beside
the plain reference. A parameter's error is |gradient - fp64's| / |fp64's|, in the Euclidean norm.
Batch 128 takes minutes and several GB.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from emulator.runs import Setting, autocast, error, exact, reference, run
from torch import Tensor


def main(batches: Sequence[int]) -> None:
    """Print a line a batch."""
    print("median and largest error of a parameter's gradient, against fp64's")
    print(f"{'images':>6}{'kernels':>18}{'autocast':>18}{'reference':>18}")
    for batch in batches:
        setting = Setting(batch, side=32, block_layers=6)
        truth = exact(setting).grads

        def cell(grads: Sequence[Tensor], truth: Sequence[Tensor] = truth) -> str:
            errors = [error(ours, right) for ours, right in zip(grads, truth, strict=True)]
            return f"{statistics.median(errors):9.4f}{max(errors):9.4f}"

        found = run(setting).grads, autocast(setting), reference(setting)[1]
        print(f"{batch:>6}" + "".join(map(cell, found)), flush=True)


if __name__ == "__main__":
    main([int(batch) for batch in sys.argv[1:]])
