"""What a run of another author's model may change beside its parameters, put back afterwards."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OF_MODULE = frozenset(vars(nn.Module()))
"""Attributes that torch.nn.Module keeps of its own: parameters, hooks, the mode."""


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back what runs of the model inside change: state, and the random number generators.

    State is its buffers, and tensors, lists and dicts in plain attributes of its modules; MONAI's
    DynUNet keeps its heads' outputs in a list. Lists and dicts are put back in place, since modules
    share them. Every such context starts from the same random state.
    """
    modules = [(module, _plain(module), dict(module._buffers)) for module in model.modules()]
    contents: dict[int, tuple[Any, Any]] = {}
    for _, attributes, buffers in modules:
        _remember([*attributes.values(), *buffers.values()], contents)
    cuda = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(sorted(cuda)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)
        for value, content in contents.values():
            _put_back(value, content)
        for module, attributes, buffers in modules:
            for name in _plain(module).keys() - attributes.keys():
                del vars(module)[name]
            vars(module).update(attributes)
            # A forward pass may put another tensor in a buffer's place.
            module._buffers.clear()
            module._buffers.update(buffers)


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OF_MODULE}


def _remember(values: Iterable[Any], contents: dict[int, tuple[Any, Any]]) -> None:
    for value in values:
        if id(value) in contents or isinstance(value, nn.Parameter):
            continue
        if isinstance(value, Tensor):
            contents[id(value)] = (value, value.detach().clone())
        elif isinstance(value, list):
            contents[id(value)] = (value, list(value))
            _remember(value, contents)
        elif isinstance(value, dict):
            contents[id(value)] = (value, dict(value))
            _remember(value.values(), contents)


@torch.no_grad()
def _put_back(value: Any, content: Any) -> None:
    if isinstance(value, Tensor):
        if not torch.equal(value, content):
            value.copy_(content)
    elif isinstance(value, list):
        if len(value) != len(content) or any(
            a is not b for a, b in zip(value, content, strict=True)
        ):
            value[:] = content
    elif list(value) != list(content) or any(value[key] is not content[key] for key in content):
        value.clear()
        value.update(content)
