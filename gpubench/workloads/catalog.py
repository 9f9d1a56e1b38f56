"""The bundled workloads by name. Nothing here imports torch, so that listing them is immediate."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

# One module of this package each; the module's function has the same name.
SUMMARIES = MappingProxyType(
    {
        "resnet50": "ResNet-50 v1.5 image classification, 224x224, 25.6 M parameters",
        "unet3d": "Residual 3-D U-Net segmentation of 64x64x64 patches, whole or sliding-window",
        "vae": "Convolutional autoencoder of latent diffusion: encode, decode or reconstruct, whole or tiled",
    }
)
SIZES = ("base", "small", "tiny")  # of every bundled workload


def names() -> tuple[str, ...]:
    """The names of the bundled workloads, sorted."""
    return tuple(sorted(SUMMARIES))


def summary(name: str) -> str:
    """What a bundled workload is, one line. Raises KeyError for a name not in `names()`."""
    return SUMMARIES[name]


def auto_size(device_kind: str, sizes: Sequence[str] = SIZES) -> str:
    """The size that `--size auto` means: `base` on a GPU, `small` on a CPU, the first one where there is no such."""
    preferred = "base" if device_kind == "cuda" else "small"
    return preferred if preferred in sizes else sizes[0]


def resolve_size(reference: str, size: str | None, device_kind: str) -> str | None:
    """The size to load for what a user typed. `auto` (or None) on a user's own workload is None: its own default."""
    if size not in (None, "auto"):
        return size
    return auto_size(device_kind) if reference in SUMMARIES else None
