"""Folders of encoded images, read and decoded inside the DALI pipeline.

For sets that do not fit in memory, ImageNet-style folders included; several processes share each
batch as shards.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from lion_fast.data.dali import PipelineLoader
from lion_fast.data.folder import SplitListing, decode_image
from lion_fast.data.plan import BatchPlan
from lion_fast.errors import UserError


class DaliFolderLoader(PipelineLoader):
    """Decodes the JPEG and PNG files of a listing as planned, stretched to `image_size` = (H, W).

    Pixels are those of `folder.decode_image`: PNG exactly; JPEG within 2 levels of 255 on the CPU,
    while a GPU's decoder may differ more; resized images within 2 levels on average.

    A file that cannot be decoded raises UserError with its name. With `skip_corrupt` the next
    readable file of the listing, in cyclic order, takes its place each time it is planned, label
    included; this depends on the files alone, so resuming and sharding do not change it.
    The other arguments are PipelineLoader's.
    """

    _fed_layout = ""

    def __init__(
        self,
        listing: SplitListing,
        plan: BatchPlan,
        *,
        image_size: tuple[int, int],
        num_steps: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        dtype: torch.dtype,
        channels_last: bool = True,
        steps_per_run: int = 16,
        num_threads: int = 2,
        prefetch: int = 2,
        shard_id: int = 0,
        num_shards: int = 1,
        skip_corrupt: bool = False,
    ) -> None:
        self._files = _FileGather(listing)
        self._skip_corrupt = skip_corrupt
        super().__init__(
            plan,
            self._files,
            image_size=image_size,
            num_steps=num_steps,
            mean=mean,
            std=std,
            device=device,
            dtype=dtype,
            channels_last=channels_last,
            steps_per_run=steps_per_run,
            num_threads=num_threads,
            prefetch=prefetch,
            shard_id=shard_id,
            num_shards=num_shards,
        )

    @property
    def num_skipped(self) -> int:
        """Unreadable files met so far."""
        return len(self._files.unreadable)

    def _decode(self, fed: Any) -> Any:
        from nvidia.dali import fn
        from nvidia.dali.types import DALIImageType

        device = "mixed" if self._device.type == "cuda" else "cpu"
        encoded = fn.io.file.read(fed)
        images = fn.decoders.image(encoded, device=device, output_type=DALIImageType.RGB)
        height, width = self._image_size
        return fn.resize(images, resize_y=height, resize_x=width)

    def _fetch(self) -> None:
        while True:
            try:
                return super()._fetch()
            except RuntimeError as error:
                self._replace_unreadable(error)

    def _replace_unreadable(self, error: RuntimeError) -> None:
        """Exclude the files that broke the pipeline and start a new one at the current step.

        Raise UserError with the first one's name unless corrupt files are skipped or none is left,
        and `error` itself when every file of the failed run can be read.
        """
        failed_here = self._source.fed and self._source.fed[0] == self._step
        self._source.fed.clear()
        self._source.start = self._step
        rows = self._files.rows(self._source.planned().indices)
        with ThreadPoolExecutor(self._num_threads) as pool:
            complaints = dict(zip(rows, pool.map(self._files.complaint, rows), strict=True))
        unreadable = {row: complaint for row, complaint in complaints.items() if complaint}
        if unreadable and not self._skip_corrupt:
            raise next(iter(unreadable.values())) from error
        if not unreadable and failed_here:
            raise error
        self._files.unreadable |= unreadable.keys()
        if self.num_skipped == len(self._files.paths):
            raise UserError(f"none of the {self.num_skipped} image files can be decoded") from error
        self._pipeline = self._build()


class _FileGather:
    """Feeds the paths of files; DALI's threads read them."""

    def __init__(self, listing: SplitListing) -> None:
        self.paths = listing.paths
        self.labels = listing.labels.numpy()
        self.unreadable: set[int] = set()

    def rows(self, indices: np.ndarray) -> list[int]:
        """Return indices with every unreadable file replaced by the next readable one."""
        rows: list[int] = indices.ravel().tolist()
        for position, row in enumerate(rows):
            while row in self.unreadable:
                row = (row + 1) % len(self.paths)
            rows[position] = row
        return rows

    def complaint(self, row: int) -> UserError | None:
        """Return why a file cannot be decoded, or None."""
        try:
            decode_image(self.paths[row])
        except UserError as error:
            return error
        return None

    def __call__(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        rows = self.rows(indices)
        encoded_paths = [np.frombuffer(os.fsencode(self.paths[row]), np.uint8) for row in rows]
        return encoded_paths, self.labels[rows]
