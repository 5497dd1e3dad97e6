"""augment_masks: gather, crop and mirror the masks of a batch, as `augment_batch` its images.

Plain PyTorch on every device: a mask has one byte a pixel where the batch's image has six or
twelve, and nothing is computed.

Shapes: N masks in the set, B in a batch, S planned steps, H x W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = 255
"""What padding is, and every pixel of a step beyond the plan."""


def augment_masks(
    masks: Tensor,
    indices: Tensor,
    flips: Tensor,
    *,
    crops: Tensor | None = None,
    padding: int = 0,
    step: Tensor | None = None,
) -> Tensor:
    """Return masks (B, H, W) uint8 of (N, H, W), one for each image of `augment_batch`.

    indices, flips, crops and step are those of `augment_batch`. A step beyond the plan gives masks
    that are ignored whole. Nothing waits for the device.
    """
    beyond = None
    if step is not None:
        row = step.clamp(0, len(indices) - 1).reshape(1)
        beyond = step != row
        indices = indices.index_select(0, row).squeeze(0)
        flips = flips.index_select(0, row).squeeze(0)
        crops = None if crops is None else crops.index_select(0, row).squeeze(0)
    batch = masks.index_select(0, indices)
    if crops is not None:
        batch = _crop(batch, crops.long(), padding)
    batch = torch.where(flips[:, None, None], batch.flip(2), batch)
    return batch if beyond is None else batch.masked_fill(beyond, IGNORED)


def _crop(batch: Tensor, corners: Tensor, padding: int) -> Tensor:
    """Return the (H, W) window of each padded mask that begins at its corner (top, left)."""
    num, height, width = batch.shape
    padded = F.pad(batch, (padding,) * 4, value=IGNORED)
    y = corners[:, :1] + torch.arange(height, device=batch.device)  # (B, H)
    x = corners[:, 1:] + torch.arange(width, device=batch.device)  # (B, W)
    image = torch.arange(num, device=batch.device)[:, None, None]
    return padded[image, y[:, :, None], x[:, None, :]]
