"""Published facts of GPUs, from `profiles/gpus/*.toml`."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct, field

from gpubench.errors import GpubenchError
from gpubench.profiles_folder import profiles_folder


class DenseTflops(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Peak 10^12 floating-point operations per second without sparsity; 16-bit ones accumulate in float32.

    At the published boost clock: a card that boosts higher can exceed them.
    """

    float32: float | None = None
    tf32: float | None = None
    float16: float | None = None
    bfloat16: float | None = None


class GpuFacts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU model as its maker publishes it. None: not confirmed."""

    name: str  # as the driver reports it
    compute_capability: list[int]
    memory_gb: float  # as on the sheet
    memory_bandwidth_gb_per_s: float  # 10^9 bytes per second
    source: str
    dense_tflops: DenseTflops = field(default_factory=DenseTflops)
    name_is_ambiguous: bool = False  # a model of another memory size reports the same name


def all_gpus(folder: Path | None = None) -> list[GpuFacts]:
    """Every GPU known, ordered by file name. Raises GpubenchError naming the file and the place of a mistake."""
    gpus = []
    for path in sorted((folder or profiles_folder()).glob("gpus/*.toml")):
        try:
            gpus.append(msgspec.toml.decode(path.read_bytes(), type=GpuFacts))
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            message = f"{path} is no valid GPU profile: {error}."
            raise GpubenchError(message, "Compare it with the others there.") from error
    return gpus
