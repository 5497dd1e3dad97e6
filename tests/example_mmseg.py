"""mmsegmentation: a hook's before_train, in plain code, for mmcv has no build for every torch."""

import torch
from odd_outputs import LossDict  # an EncoderDecoder's contract

from lion_fast import lion_dg_


class LionDGHook:  # in mmengine: @HOOKS.register_module(), class LionDGHook(Hook)
    def __init__(self, inputs, samples):
        self.example = (inputs, samples, "loss")

    def before_train(self, runner):
        lion_dg_(runner.model, main="decode.loss_ce", example=self.example)


class Runner:
    model = LossDict()


images, labels = torch.randn(2, 3, 16, 16), torch.zeros(2, 16, 16, dtype=torch.long)
LionDGHook(images, labels).before_train(Runner())
auxiliary = [Runner.model.seg[1](torch.randn(1, 6, 8, 8))]
