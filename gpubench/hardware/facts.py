"""What a device is and what software runs it: plain data, readable without torch."""

from __future__ import annotations

import re
from typing import Literal

from msgspec import Struct, field


class Device(Struct, frozen=True, kw_only=True):
    """One CPU or one GPU. Fields that the other kind has are None; `unavailable` says why others are."""

    kind: Literal["cpu", "cuda"]
    name: str
    index: int | None = None  # of the CUDA device as torch counts it
    uuid: str | None = None
    total_memory_bytes: int | None = None
    fast_dtypes: list[str] = field(default_factory=list)  # not emulated: "float32", "bfloat16"
    cores: int | None = None  # CPU: usable by this process
    physical_cores: int | None = None
    instruction_sets: list[str] = field(default_factory=list)  # CPU: "avx2", "avx512f", "avx512_bf16", "amx_bf16", ...
    compute_capability: list[int] | None = None  # [9, 0]
    multiprocessors: int | None = None
    l2_cache_bytes: int | None = None  # CPU: last level
    driver_version: str | None = None
    power_limit_watts: float | None = None
    mig: bool | None = None
    ecc: bool | None = None
    unavailable: dict[str, str] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The device as a folder's name: `nvidia-h100-80gb-hbm3`, `amd-epyc-2-cores`."""
        name = self.name if self.kind == "cuda" else f"{self.name} {self.cores} cores"
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or self.kind


class Environment(Struct, frozen=True, kw_only=True):
    """The software under a measurement."""

    platform: str
    python: str
    torch: str
    cuda: str | None = None
    cudnn: str | None = None
    triton: str | None = None
    compiler: str | None = None  # the C++ compiler that inductor uses on a CPU
    libc: str | None = None
    variables: dict[str, str] = field(default_factory=dict)  # environment variables that steer torch
