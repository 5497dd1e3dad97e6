"""Lightning: a callback; it runs once, before the first batch and the optimizer's step."""

import torch
from lightning.pytorch import Callback, LightningModule
from torchvision.models import googlenet

from lion_fast import lion_dg_


class LionDG(Callback):
    """Pass as `Trainer(..., callbacks=[LionDG()])`."""

    def on_fit_start(self, trainer, module):
        lion_dg_(module.network)


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.network = googlenet(weights=None, aux_logits=True, init_weights=False, num_classes=10)


module = Classifier()
LionDG().on_fit_start(None, module)
main, *auxiliary = module.network(torch.randn(2, 3, 64, 64))
