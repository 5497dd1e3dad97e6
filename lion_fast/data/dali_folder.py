"""Folders of encoded images, read and decoded inside the DALI pipeline.

For sets that do not fit in memory, ImageNet-style folders included.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lion_fast.data.batches import BatchSpec
from lion_fast.data.dali import PipelineLoader
from lion_fast.data.decode import decode_image, flaw
from lion_fast.data.folder import SplitListing
from lion_fast.data.plan import BatchPlan
from lion_fast.errors import UserError


class DaliFolderLoader(PipelineLoader):
    """Decodes the JPEG and PNG files of a listing as planned, stretched to `image_size` = (H, W).

    Pixels are those of `folder.decode_image`: PNG exactly; JPEG within 2 levels of 255 on the CPU,
    while a GPU's decoder may differ more; resized images within 4 levels, 0.2 on average.

    A file that cannot be decoded raises UserError with its name, when its turn comes or up to
    `prefetch` runs before. With `skip_corrupt` the next readable file of the listing, in cyclic
    order, takes its place each time it is planned, label included; that depends on the files alone,
    so resuming and sharding do not change it. The other arguments are PipelineLoader's.
    """

    _fed_layout = ""

    def __init__(
        self,
        listing: SplitListing,
        plan: BatchPlan,
        spec: BatchSpec,
        *,
        image_size: tuple[int, int],
        steps_per_run: int = 16,
        num_threads: int = 2,
        prefetch: int = 2,
        skip_corrupt: bool = False,
    ) -> None:
        self._files = _FileGather(listing, skip_corrupt)
        super().__init__(
            plan,
            self._files,
            spec,
            image_size=image_size,
            steps_per_run=steps_per_run,
            num_threads=num_threads,
            prefetch=prefetch,
        )

    @property
    def num_skipped(self) -> int:
        """Unreadable files met so far."""
        return len(self._files.unreadable)

    def _decode(self, fed: Any) -> Any:
        from nvidia.dali import fn
        from nvidia.dali.fn.io.file import read
        from nvidia.dali.types import DALIImageType

        device = "mixed" if self.spec.device.type == "cuda" else "cpu"
        images = fn.decoders.image(read(fed), device=device, output_type=DALIImageType.RGB)
        height, width = self._image_size
        return fn.resize(images, resize_y=height, resize_x=width)

    def _fetch(self) -> None:
        while True:
            try:
                return super()._fetch()
            except RuntimeError as error:
                self._recover(error)

    def _recover(self, error: RuntimeError) -> None:
        """Start a new pipeline at the current step, without the files that broke the old one.

        Raises `error` itself when every file of the failed run can be decoded.
        """
        failed_here = self._source.fed and self._source.fed[0] == self._step
        self._source.fed.clear()
        self._source.start = self._step
        self._pipeline = self._build()
        rows = self._files.rows(self._source.planned().indices)
        with ThreadPoolExecutor(self._num_threads) as pool:
            complaints = list(pool.map(self._files.complaint, rows))
        if failed_here and not any(complaints):
            raise error
        for row, complaint in zip(rows, complaints, strict=True):
            if complaint:
                self._files.exclude(row, complaint)


class _FileGather:
    """Feeds the paths of files, which DALI's threads read, and keeps unreadable ones from them."""

    def __init__(self, listing: SplitListing, skip_corrupt: bool) -> None:
        self.paths = listing.paths
        self.labels = listing.labels
        self.skip_corrupt = skip_corrupt
        self.checked = np.zeros(len(self.paths), bool)
        self.unreadable: set[int] = set()

    def __call__(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        rows = self.rows(indices)
        encoded_paths = [np.frombuffer(os.fsencode(self.paths[row]), np.uint8) for row in rows]
        return encoded_paths, self.labels[rows]

    def rows(self, indices: np.ndarray) -> list[int]:
        """Return indices with every unreadable file replaced by the next readable one."""
        rows: list[int] = indices.tolist()
        for position, row in enumerate(rows):
            while not self._is_readable(row):
                row = (row + 1) % len(self.paths)
            rows[position] = row
        return rows

    def _is_readable(self, row: int) -> bool:
        """Check a file when it is first asked for, by what `flaw` looks at, then by its header.

        So hardly a damaged file gets as far as DALI's decoders, which write their complaints to
        the terminal and fail the whole run. A header that its parser rejects even crashes DALI's
        decoder (2.4) in batches of more than 4 * (threads + 1) images: the other threads then work
        on with what was freed. Damage past the header only fails the run.
        """
        if not self.checked[row]:
            found = flaw(self.paths[row]) or self._flaw_of_header(row)
            if found:
                self.exclude(row, found)
            self.checked[row] = True
        return row not in self.unreadable

    def _flaw_of_header(self, row: int) -> UserError | None:
        import nvidia.nvimgcodec as nvimgcodec

        path = self.paths[row]
        try:
            nvimgcodec.CodeStream(str(path)).width  # noqa: B018 - parses the header
        except RuntimeError as error:
            return self.complaint(row) or UserError(
                f"{path} cannot be decoded ({error}): replace it, or go on without it: "
                "--skip-corrupt"
            )
        return None

    def complaint(self, row: int) -> UserError | None:
        """Return why a file cannot be decoded, or None."""
        try:
            decode_image(self.paths[row])
        except UserError as error:
            return error
        return None

    def exclude(self, row: int, complaint: UserError) -> None:
        """Count a file as unreadable; raise the complaint unless such files are skipped."""
        if not self.skip_corrupt:
            raise complaint
        self.unreadable.add(row)
        if len(self.unreadable) == len(self.paths):
            raise UserError(f"none of the {len(self.paths)} image files can be decoded")
