"""The whole backbone of DenseNet-DS as one op: fused dense blocks that share batch statistics."""

from .op import dense_backbone
from .plan import dense_obstacle

__all__ = ["dense_backbone", "dense_obstacle"]
