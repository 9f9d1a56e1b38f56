"""What a workload's own code changes in torch for the whole process, and so for every row and for the reference."""

from __future__ import annotations

import functools
import os

from gpubench.toggles import fp32_flags

TF32_VARIABLE = fp32_flags.OVERRIDE


def read() -> dict[str, str]:
    """The settings as they are: name -> value."""
    import torch

    settings = {
        "torch.get_default_dtype()": str(torch.get_default_dtype()).removeprefix("torch."),
        "torch.is_grad_enabled()": str(torch.is_grad_enabled()),
        "torch.are_deterministic_algorithms_enabled()": str(torch.are_deterministic_algorithms_enabled()),
        "torch.get_num_threads()": str(torch.get_num_threads()),
        "torch.get_num_interop_threads()": str(torch.get_num_interop_threads()),
        "torch.backends.cudnn.benchmark": str(torch.backends.cudnn.benchmark),
        "torch.backends.cudnn.deterministic": str(torch.backends.cudnn.deterministic),
    }
    for kind in ("cpu", "cuda"):
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else "off"
        settings[f"autocast on {kind}"] = str(autocast).removeprefix("torch.")
        settings |= {fp32_flags.setting(name): value for name, value in fp32_flags.state(kind).items()}
    return settings


@functools.cache
def at_start() -> dict[str, str]:
    """The settings at the first call, which has to come before the workload's code is imported.

    As plain torch has them: what `TF32_VARIABLE` sets is then as good as set by the workload's own code.
    """
    return {**read(), fp32_flags.setting("cuda.matmul"): "fp32"}


def notes(device_kind: str) -> list[str]:
    """Sentences of the report on what the environment sets."""
    if device_kind == "cpu" or os.environ.get(TF32_VARIABLE) != "1":
        return []
    return [
        f"{TF32_VARIABLE}=1 is set here, as in NVIDIA's containers: torch begins with TF32 in matrix products, which "
        "counts as the workload's own setting."
    ]


def changed(device_kind: str) -> dict[str, str]:
    """The settings that differ from those at the start, as they are now, but for those of other kinds of device."""
    now, before = read(), at_start()
    elsewhere = ("cuda", "cudnn") if device_kind == "cpu" else ("on cpu", "mkldnn")
    return {
        name: value
        for name, value in now.items()
        if before.get(name) != value and not any(part in name for part in elsewhere)
    }
