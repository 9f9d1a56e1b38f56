"""The workloads that have a name: those bundled here and those that other distributions name as entry points.

Nothing here imports torch or loads an entry point, so that listing them is immediate.
"""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from gpubench.plugins import distribution, name_taken

ENTRY_POINT_GROUP = "gpubench.workloads"

# One module of this package each; the module's function has the same name.
SUMMARIES = MappingProxyType(
    {
        "diffusion": "Text to image in the shape of Stable Diffusion 1.5: text encoder, denoising loop, VAE decoder",
        "gpt": "Decoder-only language model, GPT-2 124M: training, prefill, or generation with a static cache",
        "recurrent_lm": "Recurrent language model (Hawk, 118 M parameters) whose recurrence is an associative scan",
        "resnet50": "ResNet-50 v1.5 image classification, 224x224, 25.6 M parameters",
        "unet3d": "Residual 3-D U-Net segmentation of 64x64x64 patches, whole or sliding-window",
        "vae": "Convolutional autoencoder of latent diffusion: encode, decode or reconstruct, whole or tiled",
        "vit_mae": "Masked autoencoder of images or volumes, ViT-B/16: encoder, or training on a visible quarter",
    }
)
# The toggles that a bundled workload brings with it.
TOGGLES: MappingProxyType[str, tuple[str, ...]] = MappingProxyType({"recurrent_lm": ("scan", "fused_qkvz")})
# Of every bundled workload; the first three are the same model on other inputs.
SIZES = ("huge", "xlarge", "large", "base", "medium", "small", "tiny")
# `auto` on a GPU: the first whose training in fp32 fits into so much memory, by what "base" takes. The largest needs
# about 20 GiB (unet3d's "large"). Cards sold as 40 GB have 39 GiB, 12 GB 11.6 and 11 GB 10.8.
BY_MEMORY = ((36 * 2**30, "large"), (int(11.5 * 2**30), "base"), (0, "medium"))


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


def brings(reference: str) -> tuple[str, ...] | None:
    """The names of the toggles that a workload brings with it; None where only loading it tells."""
    return TOGGLES.get(reference, ()) if reference in SUMMARIES else None


def origin(name: str) -> str:
    """The distribution that brings a workload, `gpubench` itself for a bundled one."""
    return "gpubench" if name in SUMMARIES else distribution(plugins()[name])


def resolve_size(reference: str, size: str | None, device_kind: str, memory_bytes: int | None = None) -> str | None:
    """The size to load for a user's `--size`. `auto` is None (its default) for a workload that is not bundled.

    memory_bytes: what a GPU has, or less where the user limits it; None: unknown.
    """
    if size not in (None, "auto"):
        return size
    if reference not in SUMMARIES:
        return None
    if device_kind != "cuda":
        return "small"
    return "base" if memory_bytes is None else next(name for least, name in BY_MEMORY if memory_bytes >= least)
