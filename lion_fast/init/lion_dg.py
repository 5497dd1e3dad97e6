"""LION-DG: zero-initialised auxiliary heads, for networks of this package and for others.

A head is found by what a model returns: it is run on an example, every output is followed back to
the layers that it reaches first, and those of every output but the main one are the heads'. Before
anything is changed, the defining property is verified with them zeroed: the head's logits are
exactly 0 (or its bias), so is its loss's gradient to all else, the gradient to the zeroed
parameters is not 0, and the main output is the same to the bit. Where that cannot hold, nothing is
changed and UserError says why. Of densenet_ds and resnet_ds, unaltered, the answer is known: they
are not run.

What is zeroed of an output layer:

- a linear layer or a convolution (of any kernel, transposed too): weight and bias;
- an affine norm (linear + batch norm): gamma and beta. Zero weights in front of it would leave its
  beta as logits, and send a gradient through a variance of 0. Behind gamma = 0 nothing gets a
  gradient, while gamma's own is not 0: it plays the weight's part;
- a layer under weight_norm: its magnitudes g and its bias, whose gradients are not 0 either. The
  directions v start to move with the second step;
- parallel branches that end in a sum: the last layer of each.

Refused by name: a head that gives or feeds the main output, or by whose scores the model selects;
one classifier for several levels; layers under spectral_norm, tied to the main classifier or run
outside their head, run twice; frozen parameters; reentrant checkpoints; lazy layers and the meta
device.
"""

from dataclasses import dataclass

from torch import nn

from lion_fast.init.calibration import unwrapped
from lion_fast.init.example import Example
from lion_fast.init.heads import HeadChoice
from lion_fast.init.output_layer import Bias, FoundHead
from lion_fast.init.outputs import Main
from lion_fast.init.plan import parameter_names, plan_heads, zero_


@dataclass(frozen=True)
class HeadReport:
    """One auxiliary head, as `lion_dg_` sees it."""

    name: str
    layers: tuple[str, ...]
    """Dotted names of its output layers: one, or one for each parallel branch."""
    parameters: tuple[str, ...]
    """Dotted names of the parameters that LION-DG zeroes."""
    zeroed: bool
    """Whether all of them are 0 now."""
    in_model: bool
    """Verified on the inputs' shapes of a run of the whole model, or known, for DenseNetDS and
    ResNetDS; else on guessed ones."""
    biases: tuple[str, ...] = ()
    """Dotted names of the biases that are not zeroed: kept, or set to given values."""

    def __str__(self) -> str:
        state = "zero" if self.zeroed else "not zero"
        kept = f"; {', '.join(self.biases)} not zeroed" if self.biases else ""
        how = "" if self.in_model else " (run by itself)"
        return f"{self.name}: {', '.join(self.parameters)} {state}{kept}{how}"


@dataclass(frozen=True)
class LionDGReport:
    """Every auxiliary head of a model; `str()` is one line a head."""

    heads: tuple[HeadReport, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.heads))


def lion_dg_(
    model: nn.Module,
    heads: HeadChoice = None,
    *,
    main: Main = None,
    bias: Bias = "zero",
    example: Example = None,
) -> nn.Module:
    """Zero the output layer of every auxiliary head (LION-DG), and leave all else.

    arXiv 2601.02105, section 3.2. A head's logits are then 0, the gradient of its loss with respect
    to the backbone is exactly 0 (Proposition 1), and its weights grow linearly under gradient
    descent (Proposition 2). `lion_dg_report` says what it zeroes; the module's docstring says which
    parameters of which layers, and what is refused.

    heads: modules of the model or their dotted names; a ModuleList or ModuleDict stands for its
    members. By default whatever gives an output of the model beside the main one, and modules of
    the usual names whose output it does not return: aux1, aux_heads, auxiliary_head,
    aux_classifier, AuxLogits, deep_supervision and the like. The main output's is never one.

    main: index or dotted key of the main output in what the model returns in training (0, -1,
    "out", "decode.loss_ce"), or several of them. By default what evaluation mode returns as its
    only tensor, else `logits` or `out`, else what this package's networks return last.

    bias: "zero" as in the paper, "keep", or a float tensor (K,) of log class frequencies. Zero
    weights alone make the gradient to the backbone exactly 0; a detector's focal prior, or the
    frequencies where one class is rare, are worth keeping.

    example: one batch of the model's inputs: a tensor, a tuple of positional arguments, or a
    mapping of keyword arguments. A string at a tuple's end is passed as `mode`, as OpenMMLab's
    models take it: (images, samples, "loss"). Without it the model runs on made-up images.

    Works through DataParallel, DistributedDataParallel and torch.compile. The run leaves no trace:
    random states, modes, buffers, attributes and gradients are as before; only hooks notice.

    Raises UserError if no head is found, a name or module is not in the model, the main output is
    unknown and one of the heads may give it, or a head cannot have the property; the model is then
    unchanged.
    """
    zero_(model, plan_heads(model, heads, main=main, bias=bias, example=example))
    return model


def lion_dg_report(
    model: nn.Module,
    heads: HeadChoice = None,
    *,
    main: Main = None,
    bias: Bias = "zero",
    example: Example = None,
) -> LionDGReport:
    """Return what `lion_dg_` with the same arguments zeroes, or has zeroed; change nothing.

    Raises UserError as `lion_dg_` does.
    """
    plan = plan_heads(model, heads, main=main, bias=bias, example=example)
    names = parameter_names(unwrapped(model))
    return LionDGReport(tuple(_report(head, bias, names) for head in plan.heads))


def _report(head: FoundHead, bias: Bias, names: dict[int, list[str]]) -> HeadReport:
    option = head.option
    assert option is not None
    zeroed = option.parameters(bias)
    kept = [p for p in option.biases if not any(p is z for z in zeroed)]
    return HeadReport(
        head.name,
        tuple(head.names[layer] for layer in option.layers),
        tuple(_inside(head.name, names[p.data_ptr()]) for p in zeroed),
        not any(p.any() for p in zeroed),
        head.in_model,
        tuple(_inside(head.name, names[p.data_ptr()]) for p in kept),
    )


def _inside(head: str, names: list[str]) -> str:
    return next((name for name in names if name.startswith(f"{head}.")), names[0])
