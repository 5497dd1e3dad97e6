"""Fetch batches from two workers where /dev/shm is small; the arguments say otherwise.

unchecked: overlook how small it is. without: no workers. auto: as many as can be.
"""

import sys
from contextlib import closing

import torch

from lion_fast.data import workers
from lion_fast.data.batches import BatchSpec
from lion_fast.data.plan import BatchPlan
from lion_fast.errors import UserError


def main():
    if "unchecked" in sys.argv:
        workers._free_shared_memory = lambda: None
    images = torch.zeros(300, 64, 64, 3, dtype=torch.uint8)
    spec = BatchSpec(9, (0.5,) * 3, (1.0,) * 3, torch.device("cpu"), torch.float32)
    plan = BatchPlan(300, 128, seed=0)
    labels = torch.arange(300)
    num_workers = 0 if "without" in sys.argv else 2
    try:
        loader = workers.WorkersLoader(
            images, labels, plan, spec, num_workers=num_workers, fewer="auto" in sys.argv
        )
        with closing(loader):
            for step in range(9):
                batch = loader.next()
                planned = torch.from_numpy(plan.steps(step, step + 1).indices[0])
                assert torch.equal(batch.labels, labels[planned]), step
    except UserError as error:
        print(error)
    else:
        print("fine")


if __name__ == "__main__":
    main()
