"""Text to image by latent diffusion: a text encoder, a U-Net that takes noise away step by step, and a VAE's decoder.

Architecture: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022), figure 3, in the
shape of Stable Diffusion 1.5: the text encoder of CLIP ViT-L/14 (Radford et al., 2021), whose states the U-Net looks
at, and the decoder of the workload `vae`. Sampling is DDIM without randomness (Song et al., 2020, equation 12), with
classifier-free guidance (Ho and Salimans, 2022): each latent is denoised twice, with the prompt and with an empty one.
Training is of the U-Net alone, on the noise in noisy latents. The noise and the timesteps are inputs, so that a step is
repeatable.

"base" has 123,060,480 parameters in the text encoder, 859,520,964 in the U-Net and 49,490,199 in the decoder, 20 of
them in the convolution before it, as the published checkpoints have (BK-SDM's count_macs_params.py). A pass of
64 x 64 latents through the U-Net is 803 GFLOP, 677 of them in convolutions and linear layers (the same count: 338.7
billion multiply-adds, without the products of attention). An image of 20 steps is 34.7 TFLOP, with guidance.

Shares of the CPU time in percent, operator by operator ("base" with one image, its optimizer's by a part of it):

|                  | convolution | attention | matrix products | norms | element-wise and the rest |
| ---------------- | ----------- | --------- | --------------- | ----- | ------------------------- |
| inference, base  | 50          | 19        | 23              | 3     | 5                         |
| inference, small | 42          | 12        | 23              | 6     | 17                        |
| training, base   | 43          | 14        | 17              | 1     | 25                        |
| training, small  | 36          | 8         | 15              | 4     | 37                        |
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpubench.errors import GpubenchError
from gpubench.workloads import vae
from gpubench.workloads.building import NOTHING
from gpubench.workloads.conditional_unet import UNet, UNetConfig
from gpubench.workloads.norms import NORM_SILU, with_norm_silu
from gpubench.workloads.optimizing import Optimizer
from gpubench.workloads.parameters import check_side, choose, compile_choices
from gpubench.workloads.workload import Batch, Options, Workload

TIMES = 1000  # of the noise schedule
BETAS = 0.00085, 0.012  # variance that the first and the last of them add; their roots are evenly spaced
STAGES = ("text_encoder", "unet", "vae")
COMPILED = compile_choices(STAGES, denoiser="unet")
LATENT_SCALE = 0.18215  # latents of size 1 are what the denoiser sees; over this, what the VAE knows


@dataclass(frozen=True)
class TextConfig:
    """A CLIP text encoder."""

    width: int
    layers: int
    heads: int
    vocabulary: int  # the last two words are the start and the end of a prompt
    length: int  # tokens


@dataclass(frozen=True)
class Config:
    """One size."""

    text: TextConfig
    unet: UNetConfig
    vae: vae.Config
    resolution: int  # pixels
    steps: int
    batch_size: int


CLIP = TextConfig(width=768, layers=12, heads=12, vocabulary=49_408, length=77)


def _stable_diffusion(batch_size: int, resolution: int = 512, width: int = 320) -> Config:
    channels = (width, 2 * width, 4 * width, 4 * width)
    unet = UNetConfig(channels, blocks=2, heads=8, groups=32, text_width=CLIP.width)
    return Config(CLIP, unet, vae.SIZES["base"], resolution, steps=20, batch_size=batch_size)


# Training "base" in fp32 takes some 15.2 GiB: 13.5 for weights, gradients and AdamW's averages, 1.7 that autograd keeps
# of each image. Its inference takes 4.6. "medium" has half the width, as training fits into 6 GiB with no other.
SIZES = {
    "huge": _stable_diffusion(batch_size=8),
    "xlarge": _stable_diffusion(batch_size=4),
    "large": _stable_diffusion(batch_size=2),
    "base": _stable_diffusion(batch_size=1),
    "medium": _stable_diffusion(batch_size=1, resolution=256, width=160),
    # Equal channels and one block a level: each further shape is one more kernel for inductor to compile.
    "small": Config(
        TextConfig(width=128, layers=1, heads=4, vocabulary=1024, length=77),
        UNetConfig((128, 128), blocks=1, heads=4, groups=16, text_width=128),
        vae.SIZES["tiny"], resolution=160, steps=2, batch_size=1,
    ),
    "tiny": Config(
        TextConfig(width=32, layers=1, heads=2, vocabulary=64, length=16),
        UNetConfig((32, 32), blocks=1, heads=2, groups=8, text_width=32),
        vae.SIZES["tiny"], resolution=64, steps=2, batch_size=2,
    ),
}  # fmt: skip


class Layer(nn.Module):
    """Causal self-attention and a perceptron of four times the width, each after a norm and added: [B, T, C]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, T, D]
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        wide = self.widen(self.norm2(x))
        out: Tensor = x + self.narrow(wide * torch.sigmoid(1.702 * wide))  # CLIP's quick GELU
        return out


class TextEncoder(nn.Module):
    """Token ids [B, T] -> what the text says at each, [B, T, C]."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Parameter(torch.empty(config.length, config.width))
        self.layers = nn.ModuleList(Layer(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.positions, std=0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.normal_(module.bias, std=0.1)
        with torch.no_grad():
            for layer in self.layers:  # all together add as much as the embedding has
                assert isinstance(layer, Layer)
                for last in (layer.out, layer.narrow):
                    last.weight /= math.sqrt(2 * config.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.tokens(tokens) + self.positions  # [B, T, C]
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.norm(x)
        return out


class LatentDiffusion(nn.Module):
    """Token ids [B, T] and noise [B, 4, H/8, W/8] -> images [B, 3, H, W]. Encoder and decoder are frozen."""

    nothing: Tensor  # the tokens of an empty prompt, [1, T]
    timesteps: Tensor  # of the loop, [N]
    sizes: Tensor  # of latents and of noise in a noisy latent, by timestep: [2, 1000]

    def __init__(self, config: Config, guidance: float) -> None:
        super().__init__()
        self.guidance = guidance
        self.text_encoder = TextEncoder(config.text).requires_grad_(False)
        self.unet = UNet(config.unet)
        self.vae = vae.Decoder(config.vae).requires_grad_(False)
        kept = shares()
        times = [TIMES // config.steps * index + 1 for index in reversed(range(config.steps))]
        self.update = [ddim(kept[time], kept[before]) for time, before in zip(times, [*times[1:], 0], strict=True)]
        buffers = {
            "nothing": prompt(torch.full((1, config.text.length - 2), config.text.vocabulary - 1), config.text),
            "timesteps": torch.tensor(times),
            "sizes": torch.tensor([[share**0.5 for share in kept], [(1 - share) ** 0.5 for share in kept]]),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, tokens: Tensor, noise: Tensor) -> Tensor:
        image: Tensor = self.vae(self.denoise(tokens, noise) / LATENT_SCALE)
        return image

    def denoise(self, tokens: Tensor, noise: Tensor) -> Tensor:
        """The latents that the loop makes of `noise`, [B, 4, H/8, W/8]: DDIM, which draws no random numbers."""
        guided = self.guidance > 1
        if guided:
            states = self.text_encoder(torch.cat((self.nothing, tokens)))  # [1 + B, T, C]
            text = torch.cat((states[:1].expand(len(tokens), -1, -1), states[1:]))  # [2B, T, C]
        else:
            text = self.text_encoder(tokens)
        x = noise
        for timestep, (keep, add) in zip(self.timesteps.split(1), self.update, strict=True):
            found = self.unet(torch.cat((x, x)) if guided else x, timestep.expand(len(text)), text)
            if guided:
                without, told = found.chunk(2)
                found = without + self.guidance * (told - without)
            x = keep * x + add * found
        return x


def shares() -> list[float]:
    """What is left of an image's variance at each timestep."""
    first, last = (beta**0.5 for beta in BETAS)
    betas = torch.linspace(first, last, TIMES, dtype=torch.float64, device="cpu").square()
    left: list[float] = (1 - betas).cumprod(0).tolist()
    return left


def ddim(share: float, after: float) -> tuple[float, float]:
    """The factors of latents and of predicted noise in a step to the timestep that leaves `after` (without noise)."""
    keep = math.sqrt(after / share)
    return keep, math.sqrt(1 - after) - keep * math.sqrt(1 - share)


def prompt(words: Tensor, config: TextConfig) -> Tensor:
    """Token ids of prompts [B, T] between whose start and end those words [B, T - 2] are."""
    start, end = (words.new_full((len(words), 1), config.vocabulary - place) for place in (2, 1))
    return torch.cat((start, words, end), dim=1)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean squared error of the noise that the U-Net finds in noisy latents."""
    tokens, noise, latents, timesteps = batch
    with torch.no_grad():
        text = model.get_submodule("text_encoder")(tokens)
    of_latents, of_noise = model.get_buffer("sizes")[:, timesteps, None, None, None]  # [B, 1, 1, 1] each
    found = model.get_submodule("unet")(of_latents * latents + of_noise * noise, timesteps, text)
    return F.mse_loss(found.float(), noise.float())


def diffusion(
    size: str = "base",
    steps: int | None = None,
    resolution: int | None = None,
    guidance: float = 7.5,
    compiled: str = "denoiser",
) -> Workload:
    """The workload `diffusion`: prompts of random words to images of 3 x resolution x resolution, in `steps` steps.

    `guidance` is how much further than the empty prompt the prompt leads; up to 1, there is no empty prompt.
    `compiled` is what the toggle `compile` compiles, each by itself: the U-Net ("denoiser"), which runs in every step,
    text encoder and decoder ("others"), or "all". Its own toggle is `norm_silu`. Raises GpubenchError for an unknown
    size, for more steps than the noise has timesteps, and for a resolution that VAE and U-Net cannot halve so often.
    """
    config = choose("size of diffusion", size, SIZES)
    config = replace(
        config,
        steps=config.steps if steps is None else steps,
        resolution=config.resolution if resolution is None else resolution,
    )
    side, multiple = config.resolution, vae.SHRINK * 2 ** (len(config.unet.channels) - 1)
    check_side("resolution", side, multiple=multiple, least=multiple, why="VAE and U-Net halve a side so often")
    if not 1 <= config.steps < TIMES:
        raise GpubenchError(f"steps is {config.steps}.", f"It must be from 1 to {TIMES - 1}.")
    if not guidance >= 0:
        raise GpubenchError(f"guidance is {guidance}.", "It must be at least 0; up to 1 is without guidance.")
    latent = vae.LATENT_CHANNELS, side // vae.SHRINK, side // vae.SHRINK

    def build(options: Options = NOTHING) -> nn.Module:
        return with_norm_silu(LatentDiffusion(config, guidance), options)

    def inputs(batch_size: int, generator: torch.Generator) -> Batch:
        words = torch.randint(config.text.vocabulary - 2, (batch_size, config.text.length - 2), generator=generator)
        noise, latents = (torch.randn(batch_size, *latent, generator=generator) for _ in range(2))
        timesteps = torch.randint(TIMES, (batch_size,), generator=generator)
        return prompt(words, config.text), noise, latents, timesteps

    return Workload(
        name="diffusion",
        item="image",
        batch_size=config.batch_size,
        build=build,
        inputs=inputs,
        infer=lambda model, batch, options: model(*batch[:2]),
        loss=_loss,
        optimizers={"unet": Optimizer(parts=("unet",), settings={"lr": 1e-4, "weight_decay": 1e-2})},
        compile_targets=choose("value of compiled", compiled, COMPILED),
        stages=STAGES,
        toggles=(NORM_SILU,),
        resolution=side,
    )
