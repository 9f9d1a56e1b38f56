"""The workloads that have a name: those bundled here and those that other distributions name as entry points.

Nothing here imports torch or loads an entry point, so that listing them is immediate.
"""

from __future__ import annotations

import ast
import functools
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType

from gpubench.plugins import distribution, name_taken

ENTRY_POINT_GROUP = "gpubench.workloads"

# One module of this package each; the module's function has the same name.
SUMMARIES = MappingProxyType(
    {
        "diffusion": "Text to image in the shape of Stable Diffusion 1.5: text encoder, denoising loop, VAE decoder",
        "dit": "Image editing with a diffusion transformer (1.7 B parameters): prompt and image to the edited image",
        "gpt": "Decoder-only language model, GPT-2 124M: training, prefill, or generation with a static cache",
        "recurrent_lm": "Recurrent language model (Hawk, 118 M parameters) whose recurrence is an associative scan",
        "resnet50": "ResNet-50 v1.5 image classification, 224x224, 25.6 M parameters",
        "unet3d": "Residual U-Net of microscopy: 3-D segmentation, 2-D label-free and super-resolution; windows",
        "vae": "Convolutional autoencoder of latent diffusion: encode, decode or reconstruct, whole or tiled",
        "video_vae": "Causal 3-D autoencoder of videos (Wan, 127 M parameters): tiled in space, in chunks of frames",
        "vit_mae": "Masked autoencoder of images or volumes, ViT-B/16: encoder, or training on a visible quarter",
    }
)
# The toggles that a bundled workload brings with it.
_TILING = (
    "tile_contiguity", "tile_ramp", "tile_blend", "tile_arithmetic", "tile_output", "tile_batch", "tile_streams",
)  # fmt: skip
TOGGLES: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "diffusion": ("norm_silu",),
        "gpt": ("batching", "loss_chunks"),
        "recurrent_lm": ("scan", "fused_qkvz", "sequence_chunk", "loss_chunks"),
        "unet3d": ("sw_batch_size",),
        "vae": (*_TILING, "norm_silu"),
        "video_vae": ("tile_frames", *_TILING),
    }
)
# Of every bundled workload; all but the last two are the same model on other inputs ("medium" is not where a billion
# parameters do not fit: diffusion, dit).
SIZES = ("huge", "xlarge", "large", "base", "medium", "small", "tiny")
# `auto` on a GPU: the first of at most this memory. Training in fp32 takes at most 64 GiB at "huge", 32 at "xlarge", 18
# at "large", 10.5 at "base" and 5 at "medium". Cards sold as 80 GB have 79.2 GiB, 40 GB 39.4, 24 GB 22.5 (A10G) to 24,
# 12 GB 11.6 and 6 GB 5.8.
BY_MEMORY = ((72.0, "huge"), (36.0, "xlarge"), (22.0, "large"), (11.5, "base"), (0.0, "medium"))  # GiB
# Where training takes more than that: the size that fits instead.
IN_TRAINING: MappingProxyType[str, dict[str, str]] = MappingProxyType(
    {"diffusion": {"base": "medium"}, "dit": {"large": "medium", "base": "medium"}}
)


@functools.cache
def plugins() -> dict[str, EntryPoint]:
    """The workloads of other distributions by name, not loaded. Raises GpubenchError where a name is taken."""
    found: dict[str, EntryPoint] = {}
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        if entry_point.name in SUMMARIES or entry_point.name in found:
            raise name_taken("workload", entry_point.name, entry_point, (*SUMMARIES, *found))
        found[entry_point.name] = entry_point
    return found


def names() -> tuple[str, ...]:
    """The names of all workloads, sorted. Raises GpubenchError like `plugins`."""
    return tuple(sorted((*SUMMARIES, *plugins())))


def summary(name: str) -> str:
    """What a workload is, one line: of another distribution's, that distribution's own summary.

    Raises KeyError for a name not in `names()`.
    """
    if name in SUMMARIES:
        return SUMMARIES[name]
    entry_point = plugins()[name]
    told = entry_point.dist.metadata.json.get("summary") if entry_point.dist else None
    return str(told or entry_point.value)


@functools.cache
def default_parameters(name: str) -> dict[str, object]:
    """The parameters of a bundled workload but its size, with the values that they have unasked; without torch."""
    module = ast.parse(Path(__file__).with_name(f"{name}.py").read_text())
    function = next(each for each in module.body if isinstance(each, ast.FunctionDef) and each.name == name)
    given = function.args.args[-len(function.args.defaults) :]
    values = {each.arg: ast.literal_eval(value) for each, value in zip(given, function.args.defaults, strict=True)}
    return {name: value for name, value in values.items() if name != "size" and value is not None}


def brings(reference: str) -> tuple[str, ...] | None:
    """The names of the toggles that a workload brings with it; None where only loading it tells."""
    return TOGGLES.get(reference, ()) if reference in SUMMARIES else None


def origin(name: str) -> str:
    """The distribution that brings a workload, `gpubench` itself for a bundled one."""
    return "gpubench" if name in SUMMARIES else distribution(plugins()[name])


def resolve_size(
    reference: str, size: str | None, device_kind: str, memory_bytes: int | None = None, mode: str | None = None
) -> str | None:
    """The size to load for a user's `--size`. `auto` is None (its default) for a workload that is not bundled.

    memory_bytes: what a GPU has, or less where the user limits it; None: unknown.
    """
    if size not in (None, "auto"):
        return size
    if reference not in SUMMARIES:
        return None
    if device_kind != "cuda":
        return "small"
    if memory_bytes is None:
        return "base"
    fitting = next(name for gib, name in BY_MEMORY if memory_bytes >= gib * 2**30)
    return IN_TRAINING.get(reference, {}).get(fitting, fitting) if mode == "training" else fitting
