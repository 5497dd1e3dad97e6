"""Modules of a model that are auxiliary heads by name: as the caller names them, or as usual."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

from torch import nn

from lion_fast.errors import UserError
from lion_fast.init.calibration import unwrapped
from lion_fast.init.example import is_weight_layer

HeadChoice = nn.Module | str | Iterable[nn.Module | str] | None

# A component of a dotted name or of an output's key: aux, aux3, aux_heads, auxiliary_head,
# aux_head_s16, AuxLogits, aux_classifier, aux_outputs, deep_supervision, ds_heads.
_AUX_NAME = re.compile(
    r"(aux|auxiliary)(_?(head|classifier|logit|output|exit|branch)(s|es)?)?(_?[a-z]?\d+)*_?"
    r"|deep_?supervision(_?(head|classifier|logit|output)s?)?(_?[a-z]?\d+)*"
    r"|ds_?(head|classifier|logit|output)s?(_?[a-z]?\d+)*",
    re.IGNORECASE,
)
# Members of a container of heads that are no auxiliary ones.
_MAIN_NAMES = ("main", "main_head", "final")
_WRAPPERS = ("module.", "_orig_mod.")
_MAX_CANDIDATES = 8


def named_heads(model: nn.Module, heads: HeadChoice) -> dict[str, nn.Module]:
    """Return the modules of an unwrapped model that the caller names, by their dotted names.

    heads: modules of the model or their names, a container of heads standing for all of them but
    the main one. Raises UserError on a module or a name that the model does not have.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, nn.Module] = {}
    for head in [heads] if isinstance(heads, (nn.Module, str)) else heads or ():
        name = _name_of(head, modules)
        members = _expanded(name, modules)
        if not members:
            raise UserError(f"head {name!r} has no parameters: {hint(model)}")
        found |= members
    if not found:
        raise UserError(f"heads is empty: {hint(model)}")
    return {name: unwrapped(head) for name, head in found.items()}


def usual_heads(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of an unwrapped model that are called as auxiliary heads usually are."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, nn.Module] = {}
    for name in modules:
        inside = any(name.startswith(f"{head}.") for head in found)
        if not inside and is_usual(name.rpartition(".")[2]):
            found |= _expanded(name, modules)
    unique: dict[nn.Module, str] = {}
    for name, head in found.items():
        unique.setdefault(unwrapped(head), name)
    return {name: head for head, name in unique.items()}


def is_usual(name: str) -> bool:
    """Tell whether a dotted name or key has a component that auxiliary heads are usually called."""
    return any(_AUX_NAME.fullmatch(part) for part in name.split("."))


def is_main_member(name: str) -> bool:
    """Tell whether a dotted name lies in the main member of a container of heads."""
    return not set(name.split(".")).isdisjoint(_MAIN_NAMES)


def _name_of(head: nn.Module | str, modules: dict[str, nn.Module]) -> str:
    if not isinstance(head, str):
        same = [n for n, m in modules.items() if m is head or unwrapped(m) is unwrapped(head)]
        if not same:
            raise UserError(f"head {type(head).__name__} is not part of the model: {hint(modules)}")
        return same[0]
    name = head
    while name not in modules and name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    if not name or name not in modules:
        close = get_close_matches(head, modules, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else hint(modules)
        raise UserError(f"the model has no module {head!r}: {remedy}")
    return name


def _expanded(name: str, modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the head of that name, or those in the container of that name."""
    module = modules[name]
    if not any(True for _ in module.parameters()):
        return {}
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)) and not _is_set_of_heads(module):
        return {name: module}
    found: dict[str, nn.Module] = {}
    for child, _ in module.named_children():
        if child not in _MAIN_NAMES:
            found |= _expanded(f"{name}.{child}", modules)
    return found


def _is_set_of_heads(module: nn.Module) -> bool:
    """Tell whether a module without a forward of its own holds a main head beside others."""
    children = {name for name, _ in module.named_children()}
    return type(module).forward is nn.Module.forward and not children.isdisjoint(_MAIN_NAMES)


def hint(model: nn.Module | dict[str, nn.Module]) -> str:
    """Return the remedy where no head is named: the layers that might give one."""
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else model
    candidates = [name for name, layer in modules.items() if name and is_weight_layer(layer)]
    if not candidates:
        return "the model has no linear layer and no convolution"
    listed = ", ".join(candidates[-_MAX_CANDIDATES:])
    return f"pass heads=[...] with modules or names, such as {listed}"
