"""Models of diffusers with few channels, from configurations, with random weights."""

from __future__ import annotations

import torchvision_ops  # noqa: F401 - before what imports torchvision

# isort: split
from typing import Any

import diffusers
import torch
from ingredients import Keywords, both, mean_square, normals, scalars, zoo_model
from torch import nn

from gpubench.workloads.workload import Batch, Options, Workload

_STEPS = scalars(1000)
_BLOCKS: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}


def unet2d_condition() -> Workload:
    """The denoiser of Stable Diffusion: time steps, text, cross attention."""

    def build() -> nn.Module:
        return diffusers.UNet2DConditionModel(
            **_BLOCKS,
            sample_size=16,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
        )

    inputs = both(normals((4, 16, 16)), _STEPS, normals((7, 32)))
    return zoo_model("diffusers-unet2d-condition", build, inputs, trains=True)


def unet2d() -> Workload:
    """A denoiser without conditions."""

    def build() -> nn.Module:
        return diffusers.UNet2DModel(
            **_BLOCKS,
            sample_size=16,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=8,
        )

    return zoo_model("diffusers-unet2d", build, both(normals((3, 16, 16)), _STEPS), trains=True)


def _autoencoder() -> Any:
    return diffusers.AutoencoderKL(
        **_BLOCKS,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=32,
    )


def vae_encode_object() -> Workload:
    """Encodes into a distribution, an object that is neither tensor nor mapping; the step calls no `forward`."""

    def infer(model: Any, batch: Batch, options: Options) -> Any:
        return model.encode(*batch)

    def loss(model: Any, batch: Batch) -> torch.Tensor:
        return mean_square(model.encode(*batch).latent_dist.mode())

    return zoo_model(
        "diffusers-vae-encode-object",
        _autoencoder,
        normals((3, 32, 32)),
        infer=infer,
        loss=loss,
        compile_targets=("encoder",),
    )


def vae_decode() -> Workload:
    """Decodes only: half of the weights are not used."""

    def infer(model: Any, batch: Batch, options: Options) -> Any:
        return model.decode(*batch, return_dict=False)[0]

    return zoo_model(
        "diffusers-vae-decode", _autoencoder, normals((4, 16, 16)), infer=infer, compile_targets=("decoder",)
    )


def dit() -> Workload:
    """A transformer whose last layer is zero as it is built: so is its output."""

    def build() -> nn.Module:
        model = diffusers.DiTTransformer2DModel(
            num_attention_heads=4,
            attention_head_dim=16,
            in_channels=4,
            num_layers=2,
            norm_num_groups=8,
            sample_size=16,
            patch_size=2,
            num_embeds_ada_norm=10,
        )
        nn.init.zeros_(model.proj_out_2.weight)  # as its authors do
        nn.init.zeros_(model.proj_out_2.bias)
        return Keywords(model, "hidden_states", "timestep", "class_labels")

    return zoo_model("diffusers-dit", build, both(normals((4, 16, 16)), _STEPS, scalars(10)), trains=True)


def vq_model() -> Workload:
    """Picks the nearest of a table's vectors: a step that rounding can change."""

    def build() -> nn.Module:
        return diffusers.VQModel(
            **_BLOCKS,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            sample_size=32,
            num_vq_embeddings=16,
        )

    return zoo_model("diffusers-vq-model", build, normals((3, 32, 32)))


def controlnet() -> Workload:
    """Ends in convolutions that are zero as they are built, and returns lists."""

    def build() -> nn.Module:
        model = diffusers.ControlNetModel(
            **_BLOCKS,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            conditioning_embedding_out_channels=(8, 16),
        )
        return Keywords(model, "sample", "timestep", "encoder_hidden_states", "controlnet_cond", return_dict=False)

    inputs = both(normals((4, 16, 16)), _STEPS, normals((7, 32), (3, 32, 32)))
    return zoo_model("diffusers-controlnet", build, inputs)


def flux() -> Workload:
    """Text and picture in one sequence, rotary positions in fp64 or fp32."""

    def build() -> nn.Module:
        model = diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
        )
        return _Flux(model)

    inputs = both(normals((64, 16), (8, 32), (32,)), _fractions)
    return zoo_model("diffusers-flux", build, inputs)


def _fractions(count: int, generator: torch.Generator) -> Batch:
    return (torch.rand(count, generator=generator),)


class _Flux(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        places = torch.cartesian_prod(torch.zeros(1), torch.arange(8.0), torch.arange(8.0))
        self.register_buffer("places", places)
        self.register_buffer("text_places", torch.zeros(8, 3))

    def forward(self, image: torch.Tensor, text: torch.Tensor, pooled: torch.Tensor, time: torch.Tensor) -> Any:
        return self.model(
            hidden_states=image,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=time,
            img_ids=self.places,
            txt_ids=self.text_places,
        )


def prior() -> Workload:
    """Linear layers over embeddings, with a causal mask of large negative numbers."""

    def build() -> nn.Module:
        model = diffusers.PriorTransformer(
            num_attention_heads=2, attention_head_dim=16, num_layers=2, embedding_dim=32, num_embeddings=8
        )
        return Keywords(model, "hidden_states", "timestep", "proj_embedding", "encoder_hidden_states")

    inputs = both(normals((32,)), _STEPS, normals((32,), (8, 32)))
    return zoo_model("diffusers-prior", build, inputs)
