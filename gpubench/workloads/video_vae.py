"""The causal video autoencoder of Wan: 1 + 4N frames to 1 + N latent frames of an eighth of their side, and back.

Architecture: Wan Team, "Wan: Open and Advanced Large-Scale Video Generative Models" (2025), section 4.1, in the shape
of its published code (Wan 2.1; channels 96, 192, 384, 384, two residual blocks a level, 16 latent channels). FlashVSR,
a video up-scaler, uses it too. Convolutions over time see the frame and two before it. The first frame stands alone:
where time is halved or doubled it is not mixed with others, so that one frame is a video too. Norms are RMS norms over
the channels of a pixel, and attention is within a frame.

A video can be worked through in chunks of frames, after the first frame alone. Each layer over time then keeps the last
frames that it has seen for the next chunk, which is the paper's feature cache, so that the result is that of all frames
at once. In space tiles overlap and are blended, since attention sees its tile alone.

"base" has 126,892,531 parameters (the paper says 127 M). Its video of 9 frames and 160 pixels takes 1.20 TFLOP to
encode and 2.01 to decode, which a test derives from the shapes of the published layers. Convolutions within a frame are
3-D ones of depth 1 here. The loss is the paper's without LPIPS, which is a network of its own.

Shares of the CPU time in percent, operator by operator ("base" at 5 frames of 64 pixels; "small" as it is; two threads
of a busy 2-core Intel Xeon VM; attention and its matrix products take less than 1):

|                  | convolution | norms | element-wise and the rest |
| ---------------- | ----------- | ----- | ------------------------- |
| inference, base  | 86          | 6     | 8                         |
| inference, small | 74          | 7     | 19                        |
| training, base   | 86          | 4     | 10                        |
| training, small  | 76          | 8     | 16                        |
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpubench.errors import GpubenchError
from gpubench.report.model import Value
from gpubench.toggles.model_context import ModelContext
from gpubench.toggles.toggle import EvidenceResult, Scope, Stage, Toggle
from gpubench.workloads.causal_vae import LATENT_CHANNELS, Autoencoder, Config, Memory
from gpubench.workloads.parameters import check_side, choose, tile_sides
from gpubench.workloads.tiling import apply_tiled, ways
from gpubench.workloads.tiling_toggles import TILE_CALLS, TILING_TOGGLES
from gpubench.workloads.workload import Batch, Options, Tiling, Workload

SHRINK = 8  # frame side / latent side; three of the four levels halve it
WHY = "a latent pixel is 8 pixels of a frame"
SLOWDOWN = 4  # frames / latent frames, the first ones not counted; two of the levels halve them
KL_WEIGHT = 1e-6  # relative to the reconstruction: the paper has 3 and 3e-6

_WAN = functools.partial(Config, (96, 192, 384, 384), 2, 3)

# Training "base" in fp32 takes 8.5 GiB: 1.9 for weights, gradients and AdamW's two averages, 6.6 kept by autograd. That
# grows with the pixels: 60.2 at "huge", 29.0 at "xlarge", 16.7 at "large", 4.4 at "medium". Inference takes 4.3 to 0.6.
SIZES = {
    "huge": _WAN(resolution=352, frames=17, tiles=(176, 256), overlap=64),
    "xlarge": _WAN(resolution=240, frames=17, tiles=(128, 192), overlap=32),
    "large": _WAN(resolution=240, frames=9, tiles=(128, 192), overlap=32),
    "base": _WAN(resolution=160, frames=9, tiles=(80, 112), overlap=32),
    "medium": _WAN(resolution=128, frames=5, tiles=(64, 96), overlap=16),
    # Equal channels everywhere and few blocks: each further shape is one more kernel for inductor to compile.
    # Two videos: small 3-D convolutions of batch 1 are left by torch to slow code of its own on a CPU, unlike base's.
    "small": Config((64, 64, 64, 64), 0, 1, resolution=24, frames=5, tiles=(16,), overlap=8, batch_size=2),
    "tiny": Config((8, 8, 8, 8), 0, 1, resolution=32, frames=5, tiles=(16, 24), overlap=8, batch_size=2),
}


ran: Counter[tuple[int, int]] = Counter()  # (most frames that went through at once, all frames) -> videos so treated


def in_chunks(half: nn.Module, x: Tensor, chunk: int, frames: int) -> Tensor:
    """`half` of `x`, the first frame and then `chunk` frames at a time (0: all at once); `frames` come out."""
    ran[chunk or x.shape[2], x.shape[2]] += 1
    if not chunk:
        whole: Tensor = half(x)
        return whole
    memory, done, result = Memory(), 0, None
    for part in (x[:, :, :1], *x[:, :, 1:].split(chunk, dim=2)):
        torch._dynamo.mark_static(part)  # else what is compiled for the first frame is compiled for any number next
        output: Tensor = half(part, memory)
        memory.turn()
        if result is None:
            result = output.new_empty(*output.shape[:2], frames, *output.shape[3:])
        result[:, :, done : done + output.shape[2]] = output
        done += output.shape[2]
    assert result is not None
    return result


def encode(model: nn.Module, video: Tensor, options: Options) -> Tensor:
    """The latent's mean, [B, 16, 1 + N, H/8, W/8]: no random numbers in inference."""
    encoder, chunk = model.get_submodule("encoder"), options.get("tile_frames", 0)
    frames = 1 + (video.shape[2] - 1) // SLOWDOWN
    tile, overlap = tile_sides(options, multiple=SHRINK, why=WHY)
    if tile:
        moments = apply_tiled(
            lambda x: in_chunks(encoder, x, chunk, frames),
            video, tile=tile, overlap=overlap, down=SHRINK, axes=2, **ways(options),
        )  # fmt: skip
    else:
        moments = in_chunks(encoder, video, chunk, frames)
    return moments[:, :LATENT_CHANNELS]


def decode(model: nn.Module, latents: Tensor, options: Options) -> Tensor:
    """The video, [B, 3, 1 + 4N, H, W]. Tiles and chunks are given in pixels and frames, in multiples of 8 and 4."""
    decoder, chunk = model.get_submodule("decoder"), options.get("tile_frames", 0) // SLOWDOWN
    frames = 1 + (latents.shape[2] - 1) * SLOWDOWN
    tile, overlap = tile_sides(options, multiple=SHRINK, why=WHY)
    if tile:
        return apply_tiled(
            lambda x: in_chunks(decoder, x, chunk, frames),
            latents, tile=tile // SHRINK, overlap=overlap // SHRINK, up=SHRINK, axes=2, **ways(options),
        )  # fmt: skip
    return in_chunks(decoder, latents, chunk, frames)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    """Reconstruction error plus the small KL term. The noise of the latent is an input, so a step is repeatable."""
    video, noise = batch
    mean, log_variance = model.get_submodule("encoder")(video).chunk(2, dim=1)  # [B, 16, 1 + N, H/8, W/8] each
    log_variance = log_variance.float().clamp(-30.0, 20.0)  # exp() stays finite
    latents = mean + (torch.exp(0.5 * log_variance) * noise).to(mean.dtype)
    reconstruction = model.get_submodule("decoder")(latents).float()
    kl = 0.5 * (mean.float().square() + log_variance.exp() - 1.0 - log_variance).mean()
    loss: Tensor = F.l1_loss(reconstruction, video.float()) + KL_WEIGHT * kl
    return loss


def frames_evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether all videos of this process went through the model so many frames at a time, as is counted there."""
    length = context.workload.items_per_sample
    # A latent frame stands for 4 frames, but for the first one.
    found = {length if most == whole else most * (length - 1) // (whole - 1) for most, whole in ran}
    words = " or ".join(map(str, sorted(found))) or "no"
    return EvidenceResult(
        found == {int(value) or length}, f"{words} of {length} frames went through the model at once in this process"
    )


def _is_inference(scope: Scope) -> str | None:
    """Applies to inference."""
    return None if scope.workload.mode == "inference" else "only inference is done in chunks"


def tile_frames(frames: int) -> Toggle:
    """The toggle for videos of `frames` frames: each chunk has equally many, so that it is compiled once."""
    chunks = [chunk for chunk in (4, 8, 16, 32, 64) if (frames - 1) % chunk == 0]
    return Toggle(
        name="tile_frames",
        summary="Frames that go through the model at once, after the first one alone; the result is the same.",
        values={0: "all", **{chunk: f"{chunk}, and of each layer the last frames before them" for chunk in chunks}},
        stage=Stage.PROBLEM,
        applies=_is_inference,
        usage=lambda value, _: f'options["tile_frames"] = {value}  # for the workload\'s infer',
        evidence=frames_evidence,
        magnitude=lambda value: int(value) or math.inf,
        source="Wan Team, Wan: Open and Advanced Large-Scale Video Generative Models (2025), section 4.1",
    )


TASKS: dict[str, Callable[[nn.Module, Batch, Options], Tensor]] = {
    "reconstruct": lambda model, batch, options: decode(model, encode(model, batch[0], options), options),
    "encode": lambda model, batch, options: encode(model, batch[0], options),
    "decode": lambda model, batch, options: decode(model, batch[0], options),
}
PARTS = {"reconstruct": ("encoder", "decoder"), "encode": ("encoder",), "decode": ("decoder",)}


def video_vae(
    size: str = "base", task: str = "reconstruct", resolution: int | None = None, frames: int | None = None
) -> Workload:
    """The workload `video_vae`: videos of frames x 3 x resolution x resolution, training is `reconstruct` only.

    Its own toggles are `tile_frames` and those of tiling. Raises GpubenchError for an unknown size or task, for a
    resolution that is no multiple of 8, and for a number of frames that is not one more than a multiple of 4.
    """
    config = choose("size of video_vae", size, SIZES)
    infer = choose("task of video_vae", task, TASKS)
    side, length = config.resolution, config.frames if frames is None else frames
    if resolution is not None:
        side = check_side("resolution", resolution, multiple=SHRINK, least=16, why="the encoder halves a side 3 times")
    if length < 5 or (length - 1) % SLOWDOWN:
        nearest = 1 + max(1, round((length - 1) / SLOWDOWN)) * SLOWDOWN
        raise GpubenchError(
            f"frames is {length}; it must be at least 5, and one more than a multiple of 4.",
            f"The nearest allowed value is {nearest}.",
        )
    latent = 1 + (length - 1) // SLOWDOWN, side // SHRINK, side // SHRINK

    def inputs(batch_size: int, generator: torch.Generator) -> Batch:
        video = torch.randn(batch_size, 3, length, side, side, generator=generator)
        latents = torch.randn(batch_size, LATENT_CHANNELS, *latent, generator=generator)
        return {"reconstruct": (video, latents), "encode": (video,), "decode": (latents,)}[task]

    return Workload(
        name="video_vae" if task == "reconstruct" else f"video_vae-{task}",
        item="frame",
        batch_size=config.batch_size,
        items_per_sample=length,
        build=lambda: Autoencoder(config),
        inputs=inputs,
        infer=infer,
        loss=_loss if task == "reconstruct" else None,
        compile_targets=PARTS[task],
        stages=PARTS[task] if task == "reconstruct" else (),
        tiling=Tiling(sizes=config.tiles, multiple=SHRINK, overlap=config.overlap),
        resolution=side,
        toggles=(tile_frames(length), *TILING_TOGGLES, *TILE_CALLS),
    )
