"""MONAI: DynUNet stacks its levels in training; evaluation mode tells which is the main one."""

import torch
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.networks.nets import DynUNet

from lion_fast import lion_dg_

network = DynUNet(2, 1, 3, [3] * 4, [1, 2, 2, 2], [2] * 3, deep_supervision=True, deep_supr_num=2)
lion_dg_(network)

loss = DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True))
levels = network(torch.randn(2, 1, 64, 64)).unbind(1)
loss(list(levels), torch.randint(3, (2, 1, 64, 64))).backward()
main, *auxiliary = levels
