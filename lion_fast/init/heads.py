"""Which modules of a model are its auxiliary heads, and which of its outputs is the main one."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from lion_fast.errors import UserError
from lion_fast.init.calibration import unwrapped
from lion_fast.init.variance import WEIGHT_LAYERS
from lion_fast.models import DeeplySupervised

HeadChoice = nn.Module | str | Iterable[nn.Module | str] | None

# The last component of a dotted name: aux, aux3, aux_heads, auxiliary_head, AuxLogits,
# aux_classifier, deep_supervision, ds_heads.
_AUX_NAME = re.compile(
    r"(aux|auxiliary)(_?(head|classifier|logit|output|exit|branch)(s|es)?)?_?\d*"
    r"|deep_?supervision(_?(head|classifier|logit|output)s?)?_?\d*"
    r"|ds_?(head|classifier|logit|output)s?_?\d*",
    re.IGNORECASE,
)
# Members of a container of heads that are no auxiliary ones.
_MAIN_NAMES = ("main", "main_head", "final")
_WRAPPERS = ("module.", "_orig_mod.")
_MAX_CANDIDATES = 8


def resolve_heads(model: nn.Module, heads: HeadChoice) -> dict[str, nn.Module]:
    """Return the auxiliary heads of an unwrapped model by their dotted names.

    heads: modules of the model or their names, a container of heads standing for all of them but
    the main one; None looks for the names in use (see `_AUX_NAME`).

    Raises UserError if there is none, and on a module or a name that the model does not have.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if heads is None:
        found = _find_heads(modules)
    else:
        found = {}
        for head in [heads] if isinstance(heads, (nn.Module, str)) else heads:
            name = _name_of(head, modules)
            members = _expanded(name, modules)
            if not members:
                raise UserError(f"head {name!r} has no parameters: {_hint(modules)}")
            found |= members
        if not found:
            raise UserError(f"heads is empty: {_hint(modules)}")
    return {name: unwrapped(head) for name, head in found.items()}


def _find_heads(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name in modules:
        inside = any(name.startswith(f"{head}.") for head in found)
        if not inside and _AUX_NAME.fullmatch(name.rpartition(".")[2]):
            found |= _expanded(name, modules)
    if not found:
        raise UserError(f"no auxiliary heads found: {_hint(modules)}")
    return found


def _name_of(head: nn.Module | str, modules: dict[str, nn.Module]) -> str:
    if not isinstance(head, str):
        same = [n for n, m in modules.items() if m is head or unwrapped(m) is unwrapped(head)]
        if not same:
            raise UserError(
                f"head {type(head).__name__} is not part of the model: {_hint(modules)}"
            )
        return same[0]
    name = head
    while name not in modules and name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    if not name or name not in modules:
        close = get_close_matches(head, modules, n=1)
        hint = f"did you mean {close[0]!r}?" if close else _hint(modules)
        raise UserError(f"the model has no module {head!r}: {hint}")
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


def _hint(modules: dict[str, nn.Module]) -> str:
    candidates = [name for name, layer in modules.items() if name and is_weight_layer(layer)]
    if not candidates:
        return "the model has no linear layer and no convolution"
    listed = ", ".join(candidates[-_MAX_CANDIDATES:])
    return f"pass heads=[...] with modules or names, such as {listed}"


def is_weight_layer(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer or a convolution, transposed ones included."""
    return isinstance(module, (*WEIGHT_LAYERS, nn.Bilinear))


def main_logits_last(model: nn.Module, output: Any) -> list[Tensor] | None:
    """Return the logits of all heads with the main one's last, or None where that is unknown.

    Known are a single tensor, a network of this package, and torchvision's outputs: named tuples
    with `logits` (GoogLeNet, Inception v3), and dicts with "out" (FCN, DeepLab v3).
    """
    if isinstance(output, Tensor):
        return [output]
    if isinstance(model, DeeplySupervised):
        return list(output)
    fields = output if isinstance(output, Mapping) else _fields(output)
    for main in ("logits", "out"):
        if isinstance(fields.get(main), Tensor):
            aux = [value for name, value in fields.items() if name != main]
            return [*(value for value in aux if value is not None), fields[main]]
    return None


def _fields(output: Any) -> dict[str, Any]:
    return output._asdict() if hasattr(output, "_asdict") else {}
