"""What the trainer's step is compared with, written as its users would write it.

All train the same network with the same losses, rate and weight decay; `tests/test_rivals.py` holds
them to the trainer's own updates.
"""

from collections.abc import Generator, Sequence
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from lion_fast.config import TrainConfig
from lion_fast.data.batches import Batch
from lion_fast.data.images import ImageSet


class HandLoop:
    """The least that an eager loop can do, over batches that were made beforehand.

    It draws no batch, counts no hits and writes no meter. model: channels_last, as the trainer has
    it.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        config: TrainConfig,
        steps_per_call: int = 1,
    ) -> None:
        self.model = model
        self._batches = cycle(batches)
        self._aux_weight = config.aux_weight
        self._steps = steps_per_call
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )

    def __call__(self) -> None:
        """Train for `steps_per_call` steps."""
        for images, labels in islice(self._batches, self._steps):
            self._optimizer.zero_grad(set_to_none=True)
            *aux, main = (F.cross_entropy(logits, labels) for logits in self.model(images))
            (main + self._aux_weight * sum(aux)).backward()
            self._optimizer.step()


class _Images(Dataset[tuple[Tensor, int]]):
    """Decoded images through transforms, item by item, as `torchvision.datasets.CIFAR10` has it."""

    def __init__(self, image_set: ImageSet) -> None:
        self.data = image_set.train_images.numpy()
        self.targets = image_set.train_labels.tolist()
        self.transform = v2.Compose(
            [
                v2.ToImage(),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(image_set.mean, image_set.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


class PlainScript:
    """What most people would write: DataLoader, torchvision transforms, PyTorch's defaults.

    fp32, NCHW, one cross-entropy per head, AdamW, and the accuracy fetched to the host each step.
    compile_mode: put the network through `torch.compile` in that mode. Close it.
    """

    def __init__(
        self,
        model: nn.Module,
        image_set: ImageSet,
        config: TrainConfig,
        device: torch.device,
        *,
        steps_per_call: int = 1,
        compile_mode: str | None = None,
    ) -> None:
        self.model = model.to(device).to(memory_format=torch.contiguous_format)
        self.forward = torch.compile(model, mode=compile_mode) if compile_mode else model
        self.accuracy = 0.0
        self._device = device
        self._aux_weight = config.aux_weight
        self._steps = steps_per_call
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self._loader = DataLoader(
            _Images(image_set),
            batch_size=config.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=config.most_workers,
            persistent_workers=config.most_workers > 0,
            pin_memory=device.type == "cuda",
        )
        self._batches = self._epochs()

    def _epochs(self) -> Generator[list[Tensor], None, None]:
        while True:
            yield from self._loader

    def __call__(self) -> None:
        """Train for `steps_per_call` steps."""
        for images, labels in islice(self._batches, self._steps):
            self.train_on(
                images.to(self._device, non_blocking=True),
                labels.to(self._device, non_blocking=True),
            )

    def train_on(self, images: Tensor, labels: Tensor) -> None:
        """Train on one batch, images (B, 3, H, W) and labels (B,) on the device."""
        logits = self.forward(images)
        *aux, main = (F.cross_entropy(each, labels) for each in logits)
        loss = main + self._aux_weight * sum(aux)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self.accuracy = (logits[-1].argmax(1) == labels).float().mean().item()

    def close(self) -> None:
        """End the worker processes."""
        self._batches.close()
        del self._batches, self._loader
