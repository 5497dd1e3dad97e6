"""nnU-Net: override the trainer's initialize, call super, then zero all but output 0."""

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from lion_fast import lion_dg_


class Trainer:  # nnunetv2's nnUNetTrainer
    def initialize(self):
        sizes = ([8, 16, 32], nn.Conv2d, 3, [1, 2, 2], 2)
        self.network = PlainConvUNet(1, 3, *sizes, 4, 2, deep_supervision=True, nonlin=nn.ReLU)


class LionTrainer(Trainer):
    def initialize(self):
        super().initialize()
        lion_dg_(self.network, main=0)  # outputs: full resolution first


trainer = LionTrainer()
trainer.initialize()
main, *auxiliary = trainer.network(torch.randn(2, 1, 64, 64))
