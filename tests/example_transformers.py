"""transformers: a Trainer callback that zeroes the auxiliary head before the first step."""

import torch
import transformers as t

from lion_fast import lion_dg_


class LionDG(t.TrainerCallback):
    """Pass as `Trainer(..., callbacks=[LionDG()])`."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        lion_dg_(model)


stages = [f"stage{i}" for i in (1, 2, 3, 4)]
backbone = t.ResNetConfig(hidden_sizes=[8, 16, 16, 32], depths=[1] * 4, out_features=stages)
config = t.UperNetConfig(backbone_config=backbone, hidden_size=16, auxiliary_in_channels=16)
model = t.UperNetForSemanticSegmentation(config)
LionDG().on_train_begin(None, None, None, model=model)
auxiliary = [model.auxiliary_head.classifier(torch.randn(1, 256, 8, 8))]
