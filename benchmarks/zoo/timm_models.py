"""Models of timm, shallow and narrow, with random weights."""

from __future__ import annotations

import torchvision_ops  # noqa: F401 - before what imports torchvision

# isort: split
from typing import Any

import timm
import torch
from ingredients import normals, zoo_model
from torch import nn

from gpubench.workloads.workload import Workload

_IMAGE = (3, 64, 64)


def _timm(architecture: str, *, trains: bool = False, size: int = 64, **options: Any) -> Workload:
    def build() -> nn.Module:
        return timm.create_model(architecture, pretrained=False, **{"num_classes": 10, **options})

    return zoo_model(f"timm-{architecture}", build, normals((3, size, size)), trains=trains)


def vit() -> Workload:
    """Linear layers and attention alone."""
    return _timm("vit_tiny_patch16_224", trains=True, img_size=64, depth=3, embed_dim=96, num_heads=3)


def convnext() -> Workload:
    """Branches scaled by 1e-6, so that the output hardly depends on them."""
    return _timm("convnext_atto", trains=True, depths=(1, 1, 2, 1), dims=(24, 48, 96, 192))


def swin() -> Workload:
    """Windows, shifts and a table of relative positions."""
    return _timm("swin_tiny_patch4_window7_224", img_size=56, size=56, embed_dim=48, depths=(1, 1, 2, 1))


def mobilenet() -> Workload:
    """Depthwise convolutions: many calls with little of the work."""
    return _timm("mobilenetv3_small_050", trains=True)


def efficientnet() -> Workload:
    """Squeeze-and-excitation: convolutions over one pixel, whose layout cannot be told."""
    return _timm("efficientnet_b0")


def resnet_features() -> Workload:
    """A list of five feature maps."""
    return _timm("resnet10t", trains=True, features_only=True, num_classes=0)


def mixer() -> Workload:
    """Linear layers along both axes; only the first operator is a convolution."""
    return zoo_model(
        "timm-mixer",
        lambda: timm.models.MlpMixer(10, img_size=64, patch_size=8, num_blocks=3, embed_dim=96),
        normals(_IMAGE),
    )


def eva() -> Workload:
    """Rotary positions and gated linear layers."""
    return _timm("eva02_tiny_patch14_224", img_size=56, size=56, depth=2, embed_dim=96, num_heads=3)


def scripted_resnet() -> Workload:
    """A scripted model: its modules are not of torch's classes, and dynamo does not trace it."""

    def build() -> nn.Module:
        model = timm.create_model("resnet10t", pretrained=False, num_classes=10, scriptable=True)
        return torch.jit.script(model)

    return zoo_model("timm-scripted-resnet", build, normals(_IMAGE))


class _OwnAutocast(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            outputs: torch.Tensor = self.model(x)
        return outputs


def own_autocast() -> Workload:
    """Runs under its own bfloat16 autocast, so that the plain model is no fp32 model."""

    def build() -> nn.Module:
        return _OwnAutocast(timm.create_model("resnet10t", pretrained=False, num_classes=10))

    return zoo_model("timm-own-autocast", build, normals(_IMAGE), trains=True)
