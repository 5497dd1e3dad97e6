"""LION-DG: zero-initialised auxiliary heads, for networks of this package and for others."""

from collections.abc import Iterable
from difflib import get_close_matches

import torch
from torch import nn

from lion_fast.errors import UserError

# This package's, then torchvision's: GoogLeNet, Inception v3, FCN and DeepLab v3.
_AUX_NAMES = ("heads.aux", "aux1", "aux2", "AuxLogits", "aux_classifier")
_MAX_CANDIDATES = 8


@torch.no_grad()
def lion_dg_(
    model: nn.Module, heads: nn.Module | str | Iterable[nn.Module | str] | None = None
) -> nn.Module:
    """Zero weight and bias of every auxiliary head's last layer (LION-DG), and leave all else.

    arXiv 2601.02105, section 3.2. A head's logits are then 0, the gradient of its loss with respect
    to the backbone is exactly 0 (Proposition 1), and its weights grow linearly under gradient
    descent (Proposition 2).

    heads: modules of the model or their dotted names. By default the auxiliary heads of this
    package's networks and of torchvision's GoogLeNet, Inception v3, FCN and DeepLab v3 are found.
    The last layer is the last `nn.Linear` or 1x1 `nn.Conv2d` in the order of registration.

    Raises UserError if no head is found, a name or module is not in the model, or a head has no
    such layer.
    """
    for layer in [_last_layer(*item) for item in _resolve_heads(model, heads).items()]:
        for parameter in layer.parameters():
            parameter.zero_()
    return model


def _last_layer(name: str, head: nn.Module) -> nn.Module:
    layers = [layer for layer in head.modules() if _is_pointwise(layer)]
    if not layers:
        raise UserError(f"head {name!r} has no nn.Linear or 1x1 nn.Conv2d to zero: name another")
    return layers[-1]


def _resolve_heads(
    model: nn.Module, heads: nn.Module | str | Iterable[nn.Module | str] | None
) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    if heads is None:
        return _find_heads(modules)
    if isinstance(heads, (nn.Module, str)):
        heads = [heads]
    names = {module: name for name, module in modules.items()}
    resolved = {}
    for head in heads:
        name = head if isinstance(head, str) else names.get(head)
        if name is None:
            raise UserError(
                f"head {type(head).__name__} is not part of the model: {_hint(modules)}"
            )
        if name not in modules:
            close = get_close_matches(name, modules, n=1)
            hint = f"did you mean {close[0]!r}?" if close else _hint(modules)
            raise UserError(f"the model has no module {name!r}: {hint}")
        resolved[name] = modules[name]
    if not resolved:
        raise UserError(f"heads is empty: {_hint(modules)}")
    return resolved


def _find_heads(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name, module in modules.items():
        if not f".{name}".endswith(tuple(f".{known}" for known in _AUX_NAMES)):
            continue
        if isinstance(module, nn.ModuleList):
            found |= {f"{name}.{index}": head for index, head in module.named_children()}
        else:
            found[name] = module
    if not found:
        raise UserError(f"no auxiliary heads found: {_hint(modules)}")
    return found


def _hint(modules: dict[str, nn.Module]) -> str:
    candidates = [name for name, module in modules.items() if name and _is_pointwise(module)]
    if not candidates:
        return "the model has no nn.Linear and no 1x1 nn.Conv2d layer"
    listed = ", ".join(candidates[-_MAX_CANDIDATES:])
    return f"pass heads=[...] with modules or names, such as {listed}"


def _is_pointwise(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1)
    return isinstance(module, nn.Linear)
