"""Image editing with a diffusion transformer: prompt and source image to the edited image, in N steps from noise.

Architecture: Wu et al., "Qwen-Image Technical Report" (2025), figure 6 and section 2, of which the editing model is
part, and Black Forest Labs, "FLUX.1 Kontext" (2025), figure 3: the source image is encoded as the noisy one is, and its
tokens stand beside the noisy tokens and the text's in every attention of the transformer (mmdit.py). A causal language
model encodes the prompt, in the shape of Qwen3-0.6B (Qwen team, 2025); the autoencoder is that of `vae`. Training is
rectified flow (Liu et al., 2022), inference as many Euler steps. Prompts have one length, so nothing is masked.

Qwen-Image's transformer has 60 blocks of width 3072, 24 heads of 128 and 20,430,401,088 parameters, as its checkpoint
has; FLUX.1's has 19 such blocks and 38 others of the same width, some 12 billion. "base" has 12 blocks of width 1536:
1,677,895,927 parameters, of which 998,192,144 in the transformer, 596,049,920 in the text encoder (as the checkpoint of
Qwen3-0.6B has) and 83,653,863 in the autoencoder. With `depth=60 width=3072` the transformer is Qwen-Image's but for
three things: a latent has 4 channels instead of 16, text features are 1024 wide instead of 3584, and the last block
leaves the text as it is. At 512 pixels a call of the transformer is 1.95 TFLOP, and an image in 8 steps 19.5 with text
encoder and autoencoder.

Shares of the CPU time in percent, operator by operator ("base" is put together from one call of each part, of the
transformer with 2 of its 12 blocks; the optimizer's share is larger in "small", which has fewer tokens a parameter):

|                  | matrix products | attention | convolution | norms | element-wise and the rest |
| ---------------- | --------------- | --------- | ----------- | ----- | ------------------------- |
| inference, base  | 54              | 15        | 13          | 2     | 16                        |
| inference, small | 49              | 8         | 17          | 4     | 22                        |
| training, base   | 42              | 17        | 18          | 2     | 21                        |
| training, small  | 35              | 6         | 8           | 2     | 49                        |
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpubench.errors import GpubenchError
from gpubench.workloads import vae
from gpubench.workloads.gpt import rotate
from gpubench.workloads.mmdit import EPS, SHARPNESS, Linear, Transformer
from gpubench.workloads.optimizing import Optimizer
from gpubench.workloads.parameters import check_side, choose, compile_choices
from gpubench.workloads.workload import Batch, Workload

PATCH = 2  # latent pixels along a side of an image token
MULTIPLE = vae.SHRINK * PATCH  # pixels along a side of an image token
TEXT_ROTARY_BASE = 1_000_000.0
STAGES = ("text_encoder", "vae.encoder", "transformer", "vae.decoder")
COMPILED = compile_choices(STAGES, denoiser="transformer")


@dataclass(frozen=True)
class Text:
    """One text encoder."""

    width: int
    layers: int
    heads: int
    kv_heads: int  # keys and values, each of which as many query heads share
    head: int  # size of a head
    hidden: int  # width inside the perceptron
    vocabulary: int


@dataclass(frozen=True)
class Config:
    """One size."""

    width: int
    depth: int
    head: int
    text: Text
    vae: vae.Config
    length: int  # tokens of the prompt
    resolution: int  # pixels
    steps: int
    batch_size: int = 1
    guidance: float = 1.0
    lora: int = 0


QWEN3 = Text(1024, 28, heads=16, kv_heads=8, head=128, hidden=3072, vocabulary=151_936)  # of 0.6 B parameters


def _wide(resolution: int, batch_size: int = 1) -> Config:
    return Config(
        1536, 12, 128, QWEN3, vae.SIZES["base"], length=256, resolution=resolution, steps=8, batch_size=batch_size
    )


# Inference in fp32 takes 6.3 GiB for the weights, and 0.8 ("base") to 6 ("huge") for the autoencoder's activations.
# Training takes 17.4 for weights, gradients and AdamW's averages, and 4 ("base") to 30 ("huge") for the backward pass.
# "medium" is a smaller model: 1.9 and 4 GiB in all.
SIZES = {
    "huge": _wide(1024, batch_size=2),
    "xlarge": _wide(1024),
    "large": _wide(768),
    "base": _wide(512),
    "medium": replace(_wide(256), width=1024, depth=4, text=replace(QWEN3, layers=8)),
    "small": Config(
        width=256,
        depth=2,
        head=64,
        text=Text(256, 2, heads=4, kv_heads=2, head=64, hidden=768, vocabulary=2000),
        vae=replace(vae.SIZES["small"], channels=(16,) * 4, groups=8),
        length=64,
        resolution=160,
        steps=3,
    ),
    "tiny": Config(
        width=64,
        depth=2,
        head=32,
        text=Text(64, 1, heads=2, kv_heads=1, head=32, hidden=128, vocabulary=100),
        vae=vae.SIZES["tiny"],
        length=6,
        resolution=32,
        steps=2,
        batch_size=2,
    ),
}


class TextLayer(nn.Module):
    """Causal self-attention and a gated perceptron, each after a norm and added to its input: [B, L, E] -> [B, L, E].

    Queries and keys are normalised; several query heads share a key and a value.
    """

    def __init__(self, config: Text) -> None:
        super().__init__()
        head = self.head = config.head
        self.sizes = [count * head for count in (config.heads, config.kv_heads, config.kv_heads)]
        self.norm1, self.norm2 = (nn.RMSNorm(config.width, eps=EPS) for _ in range(2))
        self.project = Linear(config.width, sum(self.sizes), bias=False)
        self.norm_q, self.norm_k = (nn.RMSNorm(head, eps=EPS) for _ in range(2))
        size = 1 / math.sqrt(2 * config.layers)
        self.out = Linear(config.heads * head, config.width, bias=False, size=size)
        self.gate, self.widen = (Linear(config.width, config.hidden, bias=False) for _ in range(2))
        self.narrow = Linear(config.hidden, config.width, bias=False, size=size)
        for norm in (self.norm_q, self.norm_k):
            nn.init.constant_(norm.weight, SHARPNESS)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        parts = self.project(self.norm1(x)).split(self.sizes, dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.head)).transpose(1, 2) for part in parts)  # [B, heads, L, D]
        q, k = rotate(self.norm_q(q), cosine, sine), rotate(self.norm_k(k), cosine, sine)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        out: Tensor = x + self.narrow(F.silu(self.gate(y)) * self.widen(y))
        return out


class TextEncoder(nn.Module):
    """Token ids [B, L] -> features of each token and those before it, [B, L, E]."""

    cosine: Tensor  # [L, D/2]
    sine: Tensor

    def __init__(self, config: Text, length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=EPS)
        rates = TEXT_ROTARY_BASE ** -(torch.arange(0, config.head, 2) / config.head)
        angles = torch.outer(torch.arange(length), rates)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for layer in self.layers:
            x = layer(x, self.cosine, self.sine)
        features: Tensor = self.norm(x)
        return features


class Editor(nn.Module):
    """Prompts [B, L], source images [B, 3, S, S] and noise [B, 4, S/8, S/8] -> edited images [B, 3, S, S].

    Only the transformer is trained; the text encoder and the autoencoder are frozen.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.steps, self.guidance = config.steps, config.guidance
        self.text_encoder = TextEncoder(config.text, config.length).requires_grad_(False)
        self.vae = vae.Autoencoder(config.vae).requires_grad_(False)
        for module in self.vae.modules():
            if isinstance(
                module, nn.Linear | nn.Conv2d
            ):  # keeps the size, so that tokens of images are as large as noise
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        self.transformer = Transformer(
            width=config.width,
            depth=config.depth,
            head=config.head,
            patch=vae.LATENT_CHANNELS * PATCH**2,
            text=config.text.width,
            length=config.length,
            side=config.resolution // MULTIPLE,
            rank=config.lora,
        )

    def encode(self, images: Tensor) -> Tensor:
        """The tokens of images, [B, N, P]: of the latent's mean, so that no random numbers are needed."""
        return pack(self.vae.encoder(images).chunk(2, dim=1)[0])

    def velocity(self, noisy: Tensor, source: Tensor, text: Tensor, time: Tensor) -> Tensor:
        """[B, N, P] at a time [], with guidance from that without prompt, whose text is the batch's second half."""
        if self.guidance != 1:
            noisy, source = torch.cat((noisy, noisy)), torch.cat((source, source))
        velocity: Tensor = self.transformer(noisy, source, text, time.expand(len(noisy)))
        if self.guidance != 1:
            told, untold = velocity.chunk(2)
            velocity = untold + self.guidance * (told - untold)
        return velocity

    def forward(self, prompts: Tensor, images: Tensor, noise: Tensor) -> Tensor:
        if self.guidance != 1:
            prompts = torch.cat((prompts, torch.zeros_like(prompts)))  # an empty prompt: padding alone
        text = self.text_encoder(prompts)
        source, noisy = self.encode(images), pack(noise)
        # The times stay on the device: nothing in the loop waits for it.
        times = torch.linspace(1, 0, self.steps + 1, device=noise.device)
        for step in range(self.steps):
            change = (times[step + 1] - times[step]) * self.velocity(noisy, source, text, times[step])
            noisy = noisy + change.type_as(noisy)
        edited: Tensor = self.vae.decoder(unpack(noisy))
        return edited


def pack(latents: Tensor) -> Tensor:
    """Tokens of 2 x 2 latent pixels: [B, C, H, W] -> [B, N, 4C]."""
    return F.pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2).contiguous()


def unpack(tokens: Tensor) -> Tensor:
    """The square latents of tokens: [B, N, 4C] -> [B, C, H, W]."""
    side = math.isqrt(tokens.shape[1])
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (side, side)), PATCH)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    """The error of the velocity at a random time on the straight line from image to noise (rectified flow)."""
    assert isinstance(model, Editor)
    prompts, images, noise, edited, times = batch
    with torch.no_grad():
        text = model.text_encoder(prompts)
        source, target = model.encode(torch.cat((images, edited))).chunk(2)
        noise = pack(noise)
        velocity = noise - target
        noisy = (target + times[:, None, None] * velocity).type_as(noise)
    found = model.transformer(noisy, source, text, times)
    return F.mse_loss(found.float(), velocity.float())


def dit(
    size: str = "base",
    steps: int | None = None,
    resolution: int | None = None,
    guidance: float = 1.0,
    depth: int | None = None,
    width: int | None = None,
    lora: int = 0,
    compiled: str = "denoiser",
) -> Workload:
    """The workload `dit`: a prompt, a source image and noise; in training the edited image and a time as well.

    guidance: 1 is without (of a model that was trained to need none); else a second, empty prompt beside each.
    depth, width: of the transformer. lora: rank of adapters of attention, which alone are trained then.
    compiled: what the toggle `compile` compiles, each by itself: the transformer ("denoiser"), which runs in every step
    and has 9 tenths of the work, text encoder and autoencoder ("others"), or "all".
    Raises GpubenchError for an unknown size, and for numbers that do not fit.
    """
    config = choose("size of dit", size, SIZES)
    config = replace(
        config,
        steps=config.steps if steps is None else steps,
        guidance=guidance,
        depth=config.depth if depth is None else depth,
        lora=lora,
    )
    for name, value, least in (("steps", config.steps, 1), ("depth", config.depth, 1), ("lora", config.lora, 0)):
        if value < least:
            raise GpubenchError(f"{name} is {value}.", f"Give a whole number of at least {least}.")
    if not guidance >= 1:
        raise GpubenchError(f"guidance is {guidance}.", "It must be at least 1, which is without guidance.")
    if width is not None:
        why = "that is the size of a head"
        config = replace(config, width=check_side("width", width, multiple=config.head, least=config.head, why=why))
    if resolution is not None:
        why = "an image token has so many pixels a side"
        side = check_side("resolution", resolution, multiple=MULTIPLE, least=MULTIPLE, why=why)
        config = replace(config, resolution=side)
    if lora > config.width:
        raise GpubenchError(f"lora is {lora}.", f"An adapter's rank is at most the width, {config.width}.")
    side = config.resolution
    latent = side // vae.SHRINK

    def inputs(batch_size: int, generator: torch.Generator) -> Batch:
        prompts = torch.randint(1, config.text.vocabulary, (batch_size, config.length), generator=generator)
        images, edited = torch.randn(2, batch_size, 3, side, side, generator=generator)
        noise = torch.randn(batch_size, vae.LATENT_CHANNELS, latent, latent, generator=generator)
        times = torch.rand(batch_size, generator=generator)
        return prompts, images, noise, edited, times

    return Workload(
        name="dit",
        item="image",
        batch_size=config.batch_size,
        build=lambda: Editor(config),
        inputs=inputs,
        infer=lambda model, batch, options: model(*batch[:3]),
        loss=_loss,
        optimizers={"transformer": Optimizer(parts=("transformer",))},
        stages=STAGES,
        compile_targets=choose("value of compiled", compiled, COMPILED),
        resolution=side,
    )
