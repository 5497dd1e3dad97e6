"""Small networks that return auxiliary outputs in every way that is in use.

Each is built around the same backbone: three stages with a map each. A `Case` says which layers
are zeroed with which arguments, or what a refusal says.
"""

from collections import namedtuple
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 3


def image(dims=2, side=16):
    return torch.randn(2, 3, *[side] * dims, generator=torch.Generator().manual_seed(0))


class Stages(nn.Module):
    """Three stages, maps of 6 channels at strides 1, 2 and 4, and a 1x1 head for each."""

    dims = 2

    def __init__(self, heads=3, head=None):
        super().__init__()
        conv = getattr(nn, f"Conv{self.dims}d")
        norm = getattr(nn, f"BatchNorm{self.dims}d")
        self.stages = nn.ModuleList(
            nn.Sequential(conv(i, 6, 3, stride, 1), norm(6), nn.ReLU())
            for i, stride in ((3, 1), (6, 2), (6, 2))
        )
        self.seg = nn.ModuleList(head() if head else conv(6, CLASSES, 1) for _ in range(heads))

    def maps(self, x):
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def logits(self, x):
        """Return the heads' logits, fine to coarse."""
        return [head(tap) for head, tap in zip(self.seg, self.maps(x), strict=True)]

    def forward(self, x):
        return self.logits(x)


def same_size(logits):
    return [F.interpolate(z, logits[0].shape[2:]) for z in logits]


class CoarseToFine(Stages):
    def forward(self, x):
        return self.logits(x)[::-1]


class Volumes(Stages):
    dims = 3


class Signals(Stages):
    dims = 1


class EvaluationTells(Stages):
    def forward(self, x):
        logits = self.logits(x)
        return logits if self.training else logits[0]


class Stacked(Stages):
    def forward(self, x):
        logits = same_size(self.logits(x))
        return torch.stack(logits, 1) if self.training else logits[0]


class Concatenated(Stages):
    def forward(self, x):
        logits = same_size(self.logits(x))
        return torch.cat(logits, 1) if self.training else logits[0]


class Sliced(Stages):
    """As transformer decoders do: all levels stacked, then taken apart."""

    def forward(self, x):
        levels = torch.stack(same_size(self.logits(x)))
        return {"pred": levels[0], "others": [{"pred": level} for level in levels[1:]]}


class OtherKeys(Stages):
    def forward(self, x):
        fine, middle, coarse = self.logits(x)
        return {"seg": fine, "middle": middle, "deep": {"coarse": coarse}}


class Losses(Stages):
    """PSPNet's contract: predictions and two losses in training, logits in evaluation."""

    def __init__(self):
        super().__init__(heads=2)

    def forward(self, x, y=None):
        maps = self.maps(x)
        main = self.seg[0](maps[0])
        if not self.training:
            return main
        aux = F.interpolate(self.seg[1](maps[1]), main.shape[2:])
        return main.argmax(1), F.cross_entropy(main, y), F.cross_entropy(aux, y)


class LossDict(Losses):
    """OpenMMLab's contract: a mode, and heads whose `.forward` is called from their `.loss`."""

    def forward(self, x, samples=None, mode="tensor"):
        maps = self.maps(x)
        if mode == "tensor":
            return self.seg[0].forward(maps[0])
        assert mode == "loss"
        aux = F.interpolate(self.seg[1].forward(maps[1]), x.shape[2:])
        main = self.seg[0].forward(maps[0])
        accuracy = (main.argmax(1) == samples).float().mean()
        return {
            "decode.loss_ce": F.cross_entropy(main, samples),
            "decode.loss_dice": 1 - main.softmax(1)[:, 0].mean(),
            "decode.acc_seg": accuracy,
            "aux_0.loss_ce": F.cross_entropy(aux, samples),
        }


class TotalOfLosses(Losses):
    """transformers' contract with labels: a weighted sum, and the main logits."""

    def forward(self, pixel_values, labels):
        maps = self.maps(pixel_values)
        logits = self.seg[0](maps[0])
        aux = F.interpolate(self.seg[1](maps[1]), logits.shape[2:])
        loss = F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(aux, labels)
        return {"loss": loss, "logits": logits}


class FusedSides(Stages):
    """U-2-Net's and HED's: the first output is made of all the others."""

    def __init__(self):
        super().__init__()
        self.fuse = nn.Conv2d(3 * CLASSES, CLASSES, 1)

    def forward(self, x):
        sides = same_size(self.logits(x))
        return [self.fuse(torch.cat(sides, 1)), *sides]


class MeanOfSides(Stages):
    def forward(self, x):
        sides = same_size(self.logits(x))
        return [torch.stack(sides).mean(0), *sides]


class ZeroFuse(FusedSides):
    """Whose fusion starts at 0, so that no gradient tells of it."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.fuse.weight)


class ObjectContext(Stages):
    """HRNet-OCR's: the auxiliary logits weigh the pixels that the main head reads."""

    def __init__(self):
        super().__init__(heads=2)
        self.aux_head, self.cls_head = self.seg
        self.seg = nn.ModuleList()

    def forward(self, x):
        tap = self.maps(x)[0]
        aux = self.aux_head(tap)
        regions = torch.einsum("bkhw,bchw->bkc", aux.flatten(2).softmax(2).view_as(aux), tap)
        context = torch.einsum("bkhw,bkc->bchw", aux.softmax(1), regions)
        return [aux, self.cls_head(tap + context)]


class Selected(Stages):
    """A detector's encoder scores: they choose what the main head sees, without a gradient."""

    def forward(self, x):
        maps = self.maps(x)
        scores = self.seg[1](maps[1]).amax(1).flatten(1)
        tokens = maps[1].flatten(2)
        top = scores.topk(4, 1).indices[:, None].expand(-1, 6, -1)
        return {"logits": self.seg[0](tokens.gather(2, top)[..., None]), "aux": scores}


class TwoPlaces(Stages):
    """MONAI's DynUNet: heads registered in two places, outputs kept in a shared list."""

    def __init__(self):
        super().__init__()
        self.outputs = [torch.zeros(1)] * 3
        self.again = nn.ModuleDict({"inner": self.seg})

    def forward(self, x):
        for index, logits in enumerate(same_size(self.logits(x))):
            self.outputs[index] = logits
        self.last = self.outputs[-1]
        return torch.stack(self.outputs, 1) if self.training else self.outputs[0]


class Autocast(EvaluationTells):
    """As accelerate prepares a model: its forward casts, and hands out float32."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            output = super().forward(x)
        return [z.float() for z in output] if isinstance(output, list) else output.float()


class DictInput(Stages):
    def forward(self, pixel_values, scale):
        return dict(zip(("logits", "aux_middle", "aux_coarse"),
                        self.logits(pixel_values * scale), strict=True))  # fmt: skip


class SharedByLevels(Stages):
    """DETR's and Mask2Former's: one classifier for every level."""

    def __init__(self):
        super().__init__(heads=1)

    def forward(self, x):
        logits = [self.seg[0](tap) for tap in self.maps(x)]
        return {"logits": logits[-1], "aux_outputs": logits[:-1]}


class SharedInOneCall(SharedByLevels):
    def forward(self, x):
        maps = self.maps(x)
        levels = self.seg[0](torch.cat([F.interpolate(m, maps[0].shape[2:]) for m in maps]))
        fine, *others = levels.chunk(3)
        return {"logits": fine, "aux_outputs": others}


class AuxiliariesShare(Stages):
    """One classifier for the auxiliary levels, and one for the main one: no harm."""

    def __init__(self):
        super().__init__(heads=2)

    def forward(self, x):
        fine, middle, coarse = self.maps(x)
        return [self.seg[0](fine), self.seg[1](middle), self.seg[1](coarse)]


@dataclass
class ModelOutput:
    masks: torch.Tensor
    nothing: torch.Tensor | None = None
    deep: list = field(default_factory=list)


class Dataclass(Stages):
    def forward(self, x):
        masks, *deep = self.logits(x)
        return ModelOutput(masks, deep=[ModelOutput(mask) for mask in deep])


Named = namedtuple("Named", ["main", "aux"])


class NamedTuple(Stages):
    def forward(self, x):
        main, *aux = self.logits(x)
        return Named(main, tuple(aux))


class TwoLayers(Stages):
    """Heads of two layers each, behind which maps are resized."""

    def __init__(self):
        super().__init__(
            head=lambda: nn.Sequential(
                nn.Conv2d(6, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, CLASSES, 1)
            )
        )

    def forward(self, x):
        return tuple(same_size(self.logits(x)))


class Behind(Stages):
    """Logits that are resized, permuted, flattened and normalised by functions."""

    def forward(self, x):
        main, middle, coarse = self.logits(x)
        upsampled = F.interpolate(middle, scale_factor=2, mode="bilinear")
        return {"out": main, "aux": [upsampled.permute(0, 2, 3, 1).flatten(1, 2),
                                     coarse.flatten(2).log_softmax(1)]}  # fmt: skip


class Clipped(Stages):
    def forward(self, x):
        main, *others = self.logits(x)
        return [main, *(F.relu(z) for z in others)]


class Transposed(Stages):
    def __init__(self):
        super().__init__(head=lambda: nn.ConvTranspose2d(6, CLASSES, 2, 2))


class WeightNorm(Stages):
    def __init__(self):
        super().__init__(
            head=lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(6, CLASSES, 1))
        )


class Functional(Stages):
    """A head without a module."""

    def __init__(self):
        super().__init__(heads=1)
        self.kernel = nn.Parameter(torch.randn(CLASSES, 6, 1, 1))
        self.offset = nn.Parameter(torch.randn(CLASSES))

    def forward(self, x):
        maps = self.maps(x)
        return [self.seg[0](maps[0]), F.conv2d(maps[1], self.kernel, self.offset)]


class Tied(Stages):
    def __init__(self):
        super().__init__()
        self.seg[1].weight = self.seg[0].weight


class Views(Stages):
    """Main logits in three shapes, and the map that they are made of."""

    def forward(self, x):
        main, *aux = self.logits(x)
        return {"out": main, "probabilities": main.softmax(1), "aux": aux, "features": self.tap}

    def maps(self, x):
        found = super().maps(x)
        self.tap = found[0]
        return found


class DetectorLevels(Stages):
    """A list of dicts, one a level, as detectors return."""

    def __init__(self):
        super().__init__()
        self.box = nn.ModuleList(nn.Conv2d(6, 4, 1) for _ in range(3))

    def forward(self, x):
        maps = self.maps(x)
        return [{"cls": seg(tap), "box": box(tap)}
                for seg, box, tap in zip(self.seg, self.box, maps, strict=True)]  # fmt: skip


class FocalPrior(Stages):
    def __init__(self):
        super().__init__()
        for head in self.seg:
            nn.init.constant_(head.bias, -4.6)


@dataclass
class Case:
    build: Any
    zeroed: set | None
    """Names of the layers that become 0; None where it is refused."""
    message: str = ""
    arguments: dict = field(default_factory=dict)
    key: str = ""
    """Dotted path of the main output, for the independent check."""
    example: Any = None


def labels(side=16):
    return torch.randint(CLASSES, (2, side, side), generator=torch.Generator().manual_seed(1))


OTHERS = {"seg.1", "seg.2"}
TWO = [0, 1]
RIGHT = {
    "list, fine to coarse": Case(Stages, OTHERS, arguments={"main": 0}, key="0"),
    "list, coarse to fine": Case(CoarseToFine, OTHERS, arguments={"main": -1}, key="2"),
    "list, named": Case(Stages, OTHERS, arguments={"heads": ["seg.1", "seg.2"]}, key="0"),
    "volumes": Case(Volumes, OTHERS, arguments={"main": 0}, key="0"),
    "signals": Case(Signals, OTHERS, arguments={"main": 0}, key="0"),
    "evaluation tells": Case(EvaluationTells, OTHERS, key="0"),
    "stacked": Case(Stacked, OTHERS, key=""),
    "stacked, said": Case(Stacked, OTHERS, arguments={"main": 0}),
    "stacked, named": Case(Stacked, OTHERS, arguments={"heads": ["seg.1", "seg.2"]}),
    "concatenated": Case(Concatenated, OTHERS),
    "sliced": Case(Sliced, OTHERS, arguments={"main": "pred"}, key="pred"),
    "other keys": Case(OtherKeys, OTHERS, arguments={"main": "seg"}, key="seg"),
    "losses": Case(Losses, {"seg.1"}, key="1", example=(image(), labels())),
    "losses, named": Case(
        Losses, {"seg.1"}, arguments={"heads": "seg.1"}, key="1", example=(image(), labels())
    ),
    "dict of losses": Case(
        LossDict, {"seg.1"}, key="decode.loss_ce", example=(image(), labels(), "loss")
    ),
    "dict of losses, said": Case(
        LossDict,
        {"seg.1"},
        arguments={"main": "decode.loss_ce"},
        key="decode.loss_ce",
        example=(image(), labels(), "loss"),
    ),
    "total of losses": Case(
        TotalOfLosses,
        {"seg.1"},
        arguments={"main": "logits"},
        key="logits",
        example={"pixel_values": image(), "labels": labels()},
    ),
    "registered twice": Case(TwoPlaces, OTHERS),
    "autocast in forward": Case(Autocast, OTHERS, key="0"),
    "dict input": Case(
        DictInput,
        OTHERS,
        key="logits",
        example={"pixel_values": image(), "scale": torch.tensor(2.0)},
    ),
    "auxiliaries share": Case(AuxiliariesShare, {"seg.1"}, arguments={"main": 0}, key="0"),
    "dataclass": Case(Dataclass, OTHERS, arguments={"main": "masks"}, key="masks"),
    "named tuple": Case(NamedTuple, OTHERS, arguments={"main": "main"}, key="main"),
    "two layers": Case(TwoLayers, {"seg.1.2", "seg.2.2"}, arguments={"main": 0}, key="0"),
    "resized and normalised": Case(Behind, OTHERS, key="out"),
    "transposed": Case(Transposed, OTHERS, arguments={"main": 0}, key="0"),
    "weight_norm": Case(WeightNorm, OTHERS, arguments={"main": 0}, key="0"),
    "functional": Case(Functional, {""}, arguments={"main": 0}, key="0"),
    "views and features": Case(Views, OTHERS, key="out"),
    "levels of a detector": Case(
        DetectorLevels, OTHERS | {"box.1", "box.2"}, arguments={"main": 0}, key="0.cls"
    ),
    "two main outputs": Case(
        DetectorLevels, {"seg.1", "seg.2", "box.1"}, arguments={"main": ["0", "2.box"]}, key="2.box"
    ),
}  # fmt: skip
REFUSED = {
    "list": Case(Stages, None, r"no auxiliary heads found|main=0 for \(2, 3, .*'seg.0'"),
    "list, all named": Case(
        Stages, None, r"main one is not known: pass main=0 for \(2, 3, .*\) from 'seg.0'; main=1",
        {"heads": "seg"},
    ),
    "list, the main one named": Case(Stages, None, "not known", {"heads": "seg.0"}),
    "list, no such index": Case(Stages, None, "main=3 is no output: pass main=0", {"main": 3}),
    "other keys": Case(OtherKeys, None, "pass main='seg' .*main='deep.coarse'"),
    "no such key": Case(OtherKeys, None, "main='sge' is no output", {"main": "sge"}),
    "losses, the main one named": Case(
        Losses, None, "'seg.0' gives or feeds", {"heads": "seg.0"}, example=(image(), labels())
    ),
    "no example": Case(Losses, None, "cannot run .*pass example=", {"heads": "seg.1"}),
    "fused sides": Case(FusedSides, None, "feeds the main output 0", {"main": 0}),
    "fused sides, named": Case(FusedSides, None, "feeds", {"main": 0, "heads": "seg"}),
    "fused sides, main unknown": Case(FusedSides, None, "feeds|not known", {"heads": "seg"}),
    "fusion that starts at 0": Case(ZeroFuse, None, "feeds", {"main": 0}),
    "mean of sides": Case(MeanOfSides, None, "feeds|gives outputs", {"main": 0}),
    "object context": Case(ObjectContext, None, "feeds the model's main output", {"main": 1}),
    "object context, main unknown": Case(ObjectContext, None, "feeds|not known"),
    "selected by its scores": Case(Selected, None, "changes the model's main output"),
    "shared by levels": Case(SharedByLevels, None, "classifier that is shared by levels"),
    "shared in one call": Case(SharedInOneCall, None, "classifier that is shared by levels"),
    "clipped": Case(Clipped, None, "get no gradient.*relu", {"main": 0}),
    "tied": Case(Tied, None, "is tied to 'seg.0.weight'", {"main": 0}),
}  # fmt: skip
