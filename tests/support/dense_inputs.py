"""DenseNet-DS as what the fused backbone takes of it, and as its modules compute it."""

import copy

import torch
from torch import nn

from lion_fast.models import densenet_ds


def odd_densenet(growth_rate=8, block_layers=1, stem_channels=24, dtype=torch.float32):
    """Return a network whose gammas have both signs and whose running statistics are no defaults"""
    torch.manual_seed(0)
    model = densenet_ds(10, growth_rate, block_layers, stem_channels)
    for norm in norms_of(model):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias, 0.0, 0.5)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    return model.to(dtype)


def norms_of(model):
    """Return the norms in forward order."""
    parts = [*model.blocks[0].layers]
    for transition, block in zip(model.transitions, model.blocks[1:], strict=True):
        parts += [transition, *block.layers]
    return [*(part.norm for part in parts), model.norm]


def convs_of(model):
    """Return the convolutions' weights in forward order."""
    parts = [*model.blocks[0].layers]
    for transition, block in zip(model.transitions, model.blocks[1:], strict=True):
        parts += [transition, *block.layers]
    return [model.stem.weight, *(part.conv.weight for part in parts)]


def arguments(model):
    """Return what `dense_backbone` takes after the images."""
    norms = norms_of(model)
    return (
        convs_of(model),
        [norm.weight for norm in norms],
        [norm.bias for norm in norms],
        [norm.running_mean for norm in norms],
        [norm.running_var for norm in norms],
    )


def layers_of(model):
    return {"block_layers": len(model.blocks[0].layers)}


def by_modules(model, images):
    """Return the pooled taps as the modules compute them."""
    return [tap.mean((2, 3)) for tap in model.taps(images)]


def outcome(model, backbone, images, d_pooled):
    """Return pooled taps, gradients by name and running statistics of a copy of `model`."""
    model = copy.deepcopy(model)
    pooled = backbone(model, images)
    torch.autograd.backward(pooled, [d.to(p.dtype) for d, p in zip(d_pooled, pooled, strict=True)])
    found = {f"pooled {i}": taps.detach() for i, taps in enumerate(pooled)}
    names = {parameter: name for name, parameter in model.named_parameters()}
    found |= {f"d {names[p]}": p.grad for p in model.backbone_parameters()}
    running = model.state_dict().items()
    return found | {name: value for name, value in running if "running" in name}


def errors(found, truth):
    """Return each entry's largest difference over the truth's largest value."""
    return {
        name: ((found[name].double() - value).abs().max() / value.abs().max()).item()
        for name, value in truth.items()
    }
