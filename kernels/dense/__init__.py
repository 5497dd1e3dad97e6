"""The whole backbone of DenseNet-DS as one op: fused dense blocks that share batch statistics."""

from .op import dense_backbone
from .plan import dense_obstacle
from .reference import dense_backbone_ref, dense_block_ref

__all__ = ["dense_backbone", "dense_backbone_ref", "dense_block_ref", "dense_obstacle"]
