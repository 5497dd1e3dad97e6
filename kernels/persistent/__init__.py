"""DenseNet-DS's backbone in two launches, one image a program: CUDA C++, compiled by NVRTC."""

from .op import (
    persistent_backbone,
    persistent_compilation,
    persistent_machine_obstacle,
    persistent_obstacle_on,
)
from .plan import persistent_obstacle

__all__ = [
    "persistent_backbone",
    "persistent_compilation",
    "persistent_machine_obstacle",
    "persistent_obstacle",
    "persistent_obstacle_on",
]
