"""What LION-DG does to each network of `odd_outputs`: the layers that become 0, or a refusal."""

from dataclasses import dataclass, field
from typing import Any

import torch
from odd_outputs import (
    CLASSES,
    Autocast,
    AuxiliariesShare,
    Behind,
    Clipped,
    CoarseToFine,
    Concatenated,
    Dataclass,
    DetectorLevels,
    DictInput,
    EvaluationTells,
    Functional,
    FusedSides,
    LossDict,
    Losses,
    MeanOfSides,
    NamedTuple,
    ObjectContext,
    OtherKeys,
    Selected,
    SharedByLevels,
    SharedInOneCall,
    Signals,
    Sliced,
    Stacked,
    Stages,
    Tied,
    TotalOfLosses,
    Transposed,
    TwoLayers,
    TwoPlaces,
    Views,
    Volumes,
    WeightNorm,
    ZeroFuse,
    image,
)


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
