"""What `lion_dg_` does to the networks of other libraries, checked without its own code.

    pip install 'lion-fast[foreign]'
    python bench/check_foreign.py --out bench/results/foreign.md

"aux = 0": every zeroed layer's logits are exactly 0, and the gradient of the auxiliary outputs is
exactly 0 in every parameter but the zeroed ones, whose gradient is not 0. "refused": UserError, and
the state dict is the same to the bit.
"""

import argparse
import copy
import importlib.metadata
import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lion_fast import UserError, lion_dg_

PACKAGES = (
    *("torch", "torchvision", "monai", "dynamic-network-architectures", "transformers"),
    *("segmentation-models-pytorch", "timm"),
)
MOST_SECONDS, MOST_GIB = 1.0, 0.5
"""What `lion_dg_` may cost on a network of 31 million parameters, on a machine that is free."""


class Row(NamedTuple):
    """One call on one network."""

    network: str
    build: Callable[[], nn.Module]
    arguments: dict[str, Any]
    call: str
    """The arguments as a reader would write them."""
    right: str | None
    """Name of a parameter that is zeroed; None where the call is to be refused."""


def dynunet(dims: int) -> nn.Module:
    """MONAI's, with two deep supervision heads."""
    from monai.networks.nets import DynUNet

    return DynUNet(
        dims, 1, 3, [3] * 4, [1, 2, 2, 2], [2] * 3, deep_supervision=True, deep_supr_num=2
    )


def plain_conv_unet(dims: int = 2) -> nn.Module:
    """nnU-Net's, small."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    return PlainConvUNet(
        *(1, 4, [8, 16, 32, 32], conv, 3, [1, 2, 2, 2], 2, 3, 2),
        **dict(conv_bias=True, norm_op=norm, nonlin=nn.LeakyReLU, deep_supervision=True),
    )


def fullres() -> nn.Module:
    """nnU-Net's 3d_fullres: 31 million parameters."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(
        *(1, 6, [32, 64, 128, 256, 320, 320], nn.Conv3d, 3, [1, 2, 2, 2, 2, 2], 2, 3, 2),
        **dict(conv_bias=True, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"affine": True}),
        **dict(nonlin=nn.LeakyReLU, deep_supervision=True),
    )


def residual_unet() -> nn.Module:
    """nnU-Net's residual encoder in 3-D."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    return ResidualEncoderUNet(
        *(1, 3, [8, 16, 32], nn.Conv3d, 3, [1, 2, 2], [1, 2, 2], 4, [1, 1]),
        **dict(norm_op=nn.InstanceNorm3d, nonlin=nn.LeakyReLU, deep_supervision=True),
    )


def unetpp() -> nn.Module:
    """MONAI's U-Net++: outputs of four depths, the deepest last."""
    from monai.networks.nets import BasicUNetPlusPlus

    return BasicUNetPlusPlus(2, 3, 4, (8, 8, 16, 16, 32, 8), deep_supervision=True)


def transformer(name: str) -> nn.Module:
    """One of transformers' networks, small and untrained."""
    import transformers as t

    if name == "upernet":
        backbone = t.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1] * 4,
            layer_type="basic", out_features=["stage1", "stage2", "stage3", "stage4"],
        )  # fmt: skip
        config = t.UperNetConfig(
            backbone_config=backbone, hidden_size=16, num_labels=5, auxiliary_in_channels=16
        )
        return t.UperNetForSemanticSegmentation(config)
    if name == "beit":
        config = t.BeitConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
            image_size=224, num_labels=5, out_indices=[1, 2, 3, 4],
        )  # fmt: skip
        return t.BeitForSemanticSegmentation(config)
    if name == "dpt":
        config = t.DPTConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
            image_size=64, patch_size=16, backbone_out_indices=[0, 1, 2, 3], num_labels=5,
            neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16, is_hybrid=False,
        )  # fmt: skip
        return t.DPTForSemanticSegmentation(config)
    backbone = t.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1] * 4,
        layer_type="basic", out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    if name == "detr":
        config = t.DetrConfig(
            use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
            backbone_config=t.ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1] * 4,
                layer_type="basic", out_features=["stage4"],
            ),
            d_model=32, encoder_layers=1, decoder_layers=3, encoder_ffn_dim=32,
            decoder_ffn_dim=32, num_queries=5, auxiliary_loss=True, num_labels=5,
        )  # fmt: skip
        return t.DetrForObjectDetection(config)
    config = t.RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[16, 16, 32], num_queries=20, num_labels=5,
        encoder_hidden_dim=32, decoder_in_channels=[32] * 3, d_model=32, decoder_layers=3,
        decoder_ffn_dim=32, encoder_ffn_dim=32, decoder_attention_heads=4,
        encoder_attention_heads=4, num_denoising=0,
    )  # fmt: skip
    return t.RTDetrForObjectDetection(config)


def smp_unet() -> nn.Module:
    """segmentation_models_pytorch's, with its classification head beside the masks."""
    import segmentation_models_pytorch as smp

    return smp.Unet(
        "resnet18", encoder_weights=None, classes=3, aux_params={"classes": 4, "pooling": "avg"}
    )


def inception() -> nn.Module:
    """timm's, with an auxiliary classifier."""
    import timm

    return timm.create_model("inception_v3", pretrained=False, num_classes=5, aux_logits=True)


def torchvision_model(name: str) -> nn.Module:
    """Torchvision's FCN or DeepLab with its auxiliary classifier."""
    from torchvision.models import segmentation

    return getattr(segmentation, name)(weights=None, weights_backbone=None, aux_loss=True)


def with_labels(name: str, side: int, classes: int = 5) -> dict[str, Tensor]:
    """Return an image and its labels, as transformers' trainers pass them."""
    torch.manual_seed(0)
    labels = torch.randint(classes, (2, side, side))
    return {"pixel_values": torch.randn(2, 3, side, side), "labels": labels}


def accelerated() -> nn.Module:
    """nnU-Net's network as accelerate prepares it in bf16: casts inside, float32 outside."""
    model = plain_conv_unet()
    forward = model.forward

    def cast(*args: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return [output.float() for output in forward(*args)]

    model.forward = cast
    return model


def rows() -> list[Row]:
    """Return the networks and calls of the table."""
    seg = "decoder.seg_layers"
    table = [
        Row(f"MONAI DynUNet, {d}-D", partial(dynunet, d), {}, "", "deep_supervision_heads.0")
        for d in (2, 3)
    ]
    table += [
        Row("MONAI BasicUNetPlusPlus", unetpp, {}, "", None),
        Row("MONAI BasicUNetPlusPlus", unetpp, {"main": -1}, "main=-1", "final_conv_0_1"),
        Row("nnU-Net PlainConvUNet", plain_conv_unet, {}, "", None),
        Row("nnU-Net PlainConvUNet", plain_conv_unet, {"main": 0}, "main=0", f"{seg}.0"),
        Row("nnU-Net PlainConvUNet", plain_conv_unet, {"heads": seg}, f'heads="{seg}"', None),
        Row("nnU-Net PlainConvUNet", plain_conv_unet, {"heads": [f"{seg}.0", f"{seg}.1"]},
            "heads=...seg_layers[:-1]", f"{seg}.0"),
        Row("nnU-Net PlainConvUNet", plain_conv_unet, {"heads": [f"{seg}.2"]},
            "heads=...seg_layers[-1]", None),
        Row("nnU-Net ResidualEncoderUNet, 3-D", residual_unet, {"main": 0}, "main=0", f"{seg}.0"),
        Row("the same forward under bf16 autocast", accelerated, {"main": 0}, "main=0", f"{seg}.0"),
        Row("transformers UperNet", lambda: transformer("upernet"), {}, "", "auxiliary_head"),
        Row("transformers UperNet, with labels", lambda: transformer("upernet"),
            {"example": with_labels("upernet", 64)}, "example={...}", "auxiliary_head"),
        Row("transformers BEiT", lambda: transformer("beit"),
            {"example": {"pixel_values": torch.randn(2, 3, 224, 224)}}, "example={...}",
            "auxiliary_head"),
        Row("transformers DPT", lambda: transformer("dpt"), {}, "", "auxiliary_head"),
        Row("transformers DETR", lambda: transformer("detr"),
            {"heads": "class_labels_classifier"}, 'heads="class_labels_classifier"', None),
        Row("transformers RT-DETR", lambda: transformer("rtdetr"),
            {"heads": ["model.decoder.class_embed.0", "model.decoder.class_embed.1"]},
            "heads=...class_embed[:-1]", "class_embed.0"),
        Row("transformers RT-DETR", lambda: transformer("rtdetr"),
            {"heads": "model.decoder.class_embed"}, "heads=...class_embed", None),
        Row("torchvision FCN", lambda: torchvision_model("fcn_resnet50"), {}, "", "aux_classifier"),
        Row("torchvision DeepLab v3", lambda: torchvision_model("deeplabv3_resnet50"), {}, "",
            "aux_classifier"),
        Row("smp.Unet with aux_params", smp_unet, {"heads": "classification_head"},
            'heads="classification_head"', "classification_head"),
        Row("smp.Unet with aux_params", smp_unet, {"main": 0}, "main=0", "classification_head"),
        Row("timm Inception v3", inception, {}, "", "AuxLogits"),
    ]  # fmt: skip
    return table


def judged(row: Row) -> tuple[str, bool]:
    """Return what happened, and whether that is right."""
    torch.manual_seed(0)
    model = row.build()
    before = copy.deepcopy(model.state_dict())
    try:
        lion_dg_(model, **row.arguments)
    except UserError as error:
        same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        return f"refused: {error}", same and row.right is None
    state = model.state_dict()
    changed = [name for name, value in state.items() if not torch.equal(value, before[name])]
    layers = dict.fromkeys(name.rpartition(".")[0] for name in changed)
    zeroed = {name for name in state if name.rpartition(".")[0] in layers}
    zero = all(not state[name].any() for name in zeroed)
    if not (changed and zero and row.right and any(row.right in name for name in changed)):
        return f"WRONG: changed {', '.join(changed)}", False
    awake = _awake(model, row, set(layers))
    if awake != zeroed:
        return f"WRONG: gradient in {', '.join(sorted(awake ^ zeroed)[:3])}", False
    return f"aux = 0: {', '.join(f'`{layer}`' for layer in layers)}", True


def _awake(model: nn.Module, row: Row, layers: set[str]) -> set[str]:
    """Return the parameters that a loss on the zeroed layers' outputs has a gradient in."""
    seen: list[Tensor] = []
    modules = dict(model.named_modules(remove_duplicate=False))
    hooks = [
        modules[name].register_forward_hook(lambda m, a, output: seen.append(output))
        for name in layers
        if name in modules
    ]
    example = row.arguments.get("example")
    model.train()
    if example is None:
        first = next(m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
        dims = first.weight.ndim - 2
        side = {2: 128, 3: 32}[dims]
        side = 299 if "Inception" in row.network else 64 if "DPT" in row.network else side
        model(torch.randn(2, first.in_channels, *[side] * dims))
    else:
        model(**example)
    for hook in hooks:
        hook.remove()
    assert seen and all(not output.any() for output in seen)
    loss = torch.stack([(o.float() * torch.randn(o.shape)).sum() for o in seen]).sum()
    names, parameters = zip(*model.named_parameters(remove_duplicate=False), strict=True)
    unique = list(dict.fromkeys(parameters))
    gradients = torch.autograd.grad(loss, unique, allow_unused=True)
    moved = {id(p) for p, g in zip(unique, gradients, strict=True) if g is not None and g.any()}
    return {name for name, p in zip(names, parameters, strict=True) if id(p) in moved}


def speed() -> str:
    """Return the table's row of what `lion_dg_` costs on nnU-Net's 3d_fullres."""
    model = fullres()
    size = sum(p.numel() for p in model.parameters()) / 1e6
    lion_dg_(plain_conv_unet(3), main=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times, processor = [], []
    for _ in range(3):
        start, busy = time.perf_counter(), time.process_time()
        lion_dg_(model, main=0)
        times.append(time.perf_counter() - start)
        processor.append(time.process_time() - busy)
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    seconds = statistics.median(times)
    right = "yes" if seconds <= MOST_SECONDS and more <= MOST_GIB else "**no**"
    return (
        f"| nnU-Net 3d_fullres, {size:.1f} million parameters | `main=0` | {seconds:.2f} s (median "
        f"of 3, {min(times):.2f} to {max(times):.2f}; {statistics.median(processor):.2f} s of "
        f"processor time; {torch.get_num_threads()} thread(s) of {os.cpu_count()} cores whose load "
        f"was {os.getloadavg()[0]:.1f}), {more:.2f} GiB more at its peak than with the model "
        f"alone; the bar is {MOST_SECONDS:g} s and {MOST_GIB:g} GiB | {right} |"
    )


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    # First, since a process's peak does not fall again.
    timing = speed()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    lines = [
        "# `lion_dg_` on other libraries' networks",
        "",
        f"Written by `bench/check_foreign.py` with {versions}.",
        "",
    ]  # noqa: E501
    lines += ["| network | `lion_dg_(network, ...)` | what happens | right |", "|---|---|---|---|"]
    all_right = True
    for row in rows():
        what, right = judged(row)
        all_right &= right
        call = f"`{row.call}`" if row.call else ""
        lines.append(f"| {row.network} | {call} | {what} | {'yes' if right else '**no**'} |")
        print(lines[-1], flush=True)
    lines += [timing, ""]
    print(timing)
    if arguments.out:
        arguments.out.write_text("\n".join(lines), encoding="utf-8")
    raise SystemExit(not all_right)


if __name__ == "__main__":
    main()
