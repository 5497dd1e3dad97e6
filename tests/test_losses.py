import pytest
import torch
from torch.nn import functional as F

from lion_fast.config import TrainConfig
from lion_fast.models import densenet_ds
from lion_fast.training.step.losses import LossOptions


def batch(num=6, num_classes=4):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num, 3, 8, 8, generator=generator)
    return images, torch.randint(num_classes, (num,), generator=generator)


def test_the_loss_of_logits_is_the_loss_that_training_descends():
    model = densenet_ds(num_classes=4, growth_rate=2, block_layers=1)
    images, labels = batch()
    options = LossOptions.of(TrainConfig(aux_weight=0.5, label_smoothing=0.1))
    trained = model.loss(images, labels, options.aux_weight, label_smoothing=0.1).loss
    torch.testing.assert_close(options.of_logits(model(images), labels), trained)


def test_a_network_without_auxiliary_heads_has_the_main_loss_alone():
    _, labels = batch()
    logits = torch.randn(6, 4)
    loss = LossOptions(label_smoothing=0.2).of_logits([logits], labels)
    assert loss == F.cross_entropy(logits, labels, label_smoothing=0.2)


@pytest.mark.parametrize(("warmup", "weights"), [(0, [0.5, 0.5, 0.5]), (4, [0.0, 0.25, 0.5])])
def test_the_auxiliary_weight_ramps_up_to_its_full_value(warmup, weights):
    weight_at = LossOptions(aux_weight=0.5, aux_warmup_steps=warmup).aux_weight_schedule(
        torch.device("cpu")
    )
    assert [weight_at(torch.tensor(float(step))).item() for step in (0, 2, 9)] == weights
