"""Fused ops of lion-fast, in Triton and CUDA C++, and their plain PyTorch references.

The folder installs as `lion_fast.kernels`: the top-level name `kernels` belongs to another
distribution.
"""

# Whoever looks for that one in a checkout finds this folder: transformers does, and imports it. It
# is empty then, for ops that are registered a second time are gone for those who have the first.
if __name__ == "lion_fast.kernels":
    from .augment import augment_batch, augment_batch_ref
    from .dense import dense_backbone, dense_backbone_ref, dense_block_ref, dense_obstacle
    from .dense_heads import DenseLosses, dense_supervision_loss, dense_supervision_loss_ref
    from .dispatch import Impl, resolve_impl
    from .heads import (
        HeadLosses,
        deep_supervision_loss,
        deep_supervision_loss_ref,
        pooled_supervision_loss,
        pooled_supervision_loss_ref,
    )
    from .mask_batch import augment_masks
    from .muon import muon_update_, muon_update_ref_
    from .persistent import (
        persistent_backbone,
        persistent_compilation,
        persistent_machine_obstacle,
        persistent_obstacle_on,
    )
    from .reduction import check_reduced, reduce_images, reduced_sides

__all__ = [
    "DenseLosses",
    "HeadLosses",
    "Impl",
    "augment_batch",
    "augment_batch_ref",
    "augment_masks",
    "check_reduced",
    "deep_supervision_loss",
    "deep_supervision_loss_ref",
    "dense_backbone",
    "dense_backbone_ref",
    "dense_block_ref",
    "dense_obstacle",
    "dense_supervision_loss",
    "dense_supervision_loss_ref",
    "muon_update_",
    "muon_update_ref_",
    "persistent_backbone",
    "persistent_compilation",
    "persistent_machine_obstacle",
    "persistent_obstacle_on",
    "pooled_supervision_loss",
    "pooled_supervision_loss_ref",
    "reduce_images",
    "reduced_sides",
    "resolve_impl",
]
