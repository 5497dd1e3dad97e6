"""DenseNet-DS's backbone in two launches, one image a program: CUDA C++, compiled by NVRTC."""

from .op import obstacle_on, persistent_backbone
from .plan import persistent_obstacle

__all__ = ["obstacle_on", "persistent_backbone", "persistent_obstacle"]
