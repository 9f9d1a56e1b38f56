"""Models of MONAI with few channels, mostly three-dimensional, with random weights."""

from __future__ import annotations

import torchvision_ops  # noqa: F401 - before what imports torchvision

# isort: split
from typing import Any

import torch
from ingredients import mean_square, normals, zoo_model
from monai.networks import nets
from torch import nn
from torch.nn.utils import parametrizations

from gpubench.workloads.workload import Batch, Options, Workload

_CUBE = normals((1, 32, 32, 32))


def unet() -> Workload:
    """3-D convolutions and transposed ones."""
    return zoo_model(
        "monai-unet",
        lambda: nets.UNet(3, 1, 2, channels=(8, 16, 32), strides=(2, 2), num_res_units=1),
        _CUBE,
        trains=True,
    )


def swin_unetr() -> Workload:
    """3-D windows and convolutions in one model."""
    return zoo_model(
        "monai-swin-unetr",
        lambda: nets.SwinUNETR(1, 2, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 4), feature_size=12),
        normals((1, 64, 32, 32)),
    )


def unetr() -> Workload:
    """A transformer whose hidden states become 3-D maps."""

    def build() -> nn.Module:
        return nets.UNETR(1, 2, (32, 32, 32), feature_size=8, hidden_size=48, mlp_dim=96, num_heads=4)

    return zoo_model("monai-unetr", build, _CUBE)


def vnet() -> Workload:
    """Dropout over channels in training."""
    return zoo_model("monai-vnet", lambda: nets.VNet(3, 1, 2), normals((1, 16, 16, 16)))


def segresnet() -> Workload:
    """Group norm, residual blocks, trilinear upsampling."""
    return zoo_model(
        "monai-segresnet",
        lambda: nets.SegResNet(3, 8, 1, 2, blocks_down=(1, 1, 1), blocks_up=(1, 1)),
        _CUBE,
        trains=True,
    )


def dynunet() -> Workload:
    """Deep supervision: in training several outputs, stacked."""

    def build() -> nn.Module:
        return nets.DynUNet(
            3,
            1,
            2,
            kernel_size=(3, 3, 3, 3),
            strides=(1, 2, 2, 2),
            upsample_kernel_size=(2, 2, 2),
            filters=(8, 16, 32, 32),
            deep_supervision=True,
            deep_supr_num=1,
        )

    return zoo_model("monai-dynunet", build, _CUBE, trains=True)


def attention_unet() -> Workload:
    """Gates that multiply feature maps."""
    return zoo_model(
        "monai-attention-unet",
        lambda: nets.AttentionUnet(3, 1, 2, channels=(8, 16, 32), strides=(2, 2)),
        normals((1, 16, 16, 16)),
    )


def spectral_discriminator() -> Workload:
    """Spectral norm, as a parametrization: in training each read of a weight is a step of the power iteration."""

    def build() -> nn.Module:
        model = nets.PatchDiscriminator(2, num_layers_d=2, channels=16, in_channels=3)
        for module in list(model.modules()):
            if isinstance(module, nn.Conv2d):
                parametrizations.spectral_norm(module)
        return model

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        return mean_square(model(*batch)[-1])

    return zoo_model("monai-spectral-discriminator", build, normals((3, 48, 48)), loss=loss)


def old_spectral_discriminator() -> Workload:
    """Spectral norm by torch's older hook, which leaves the weight a plain attribute."""

    def build() -> nn.Module:
        model = nets.PatchDiscriminator(2, num_layers_d=2, channels=16, in_channels=3)
        for module in list(model.modules()):
            if isinstance(module, nn.Conv2d):
                nn.utils.spectral_norm(module)
        return model

    return zoo_model("monai-old-spectral-discriminator", build, normals((3, 48, 48)))


def diffusion_unet() -> Workload:
    """Its last convolution is zero as it is built: so is its output."""

    def build() -> nn.Module:
        return nets.DiffusionModelUNet(
            2,
            1,
            1,
            channels=(8, 16),
            num_res_blocks=1,
            attention_levels=(False, True),
            norm_num_groups=8,
            num_head_channels=8,
        )

    def inputs(count: int, generator: torch.Generator) -> Batch:
        times = torch.randint(0, 1000, (count,), generator=generator)
        return torch.randn(count, 1, 16, 16, generator=generator), times

    return zoo_model("monai-diffusion-unet", build, inputs, trains=True)


def sampled_latent() -> Workload:
    """A variational autoencoder that draws random numbers in training only."""

    def build() -> nn.Module:
        return nets.VarAutoEncoder(2, (1, 32, 32), 1, 8, channels=(8, 16), strides=(2, 2))

    def infer(model: nn.Module, batch: Batch, options: Options) -> Any:
        return model(*batch)

    return zoo_model("monai-sampled-latent", build, normals((1, 32, 32)), infer=infer, trains=True)
