"""Everything that the driver and torch tell of one GPU, raw, with how long each question took.

    python scripts/gpu_facts.py FILE.json [--device cuda:0]

For reading afterwards: does this card have GPM, which reasons for lower clocks does it know, does the driver list this
process under its own id. What fails is a sentence in the place of its value.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "triton", "numpy", "pandas", "scipy", "msgspec", "nvidia-ml-py", "typer", "rich", "pytest",
            "pytest-xdist", "timm", "transformers", "nvidia-cudnn-cu13", "nvidia-cublas")  # fmt: skip
# Of one card, without further arguments; `nvml_device.py` reads some of them.
CARD_QUESTIONS = (
    "Name", "UUID", "MemoryInfo", "UtilizationRates", "PowerUsage", "EnforcedPowerLimit", "PowerManagementDefaultLimit",
    "TotalEnergyConsumption", "CurrentClocksEventReasons", "CurrentClocksThrottleReasons",
    "SupportedClocksEventReasons", "MigMode", "EccMode", "ComputeMode", "PersistenceMode", "PerformanceState",
    "ComputeRunningProcesses", "MPSComputeRunningProcesses", "GraphicsRunningProcesses", "NumGpuCores",
    "CudaComputeCapability",
)  # fmt: skip
ACTIVITY_S = 1.2  # several refreshes of the counters


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("file", type=Path)
    found.add_argument("--device", default="cuda:0")
    return found


def main(arguments: list[str]) -> int:
    """Writes the file after every group of questions, so that one that hangs costs only what comes after it."""
    given = parser().parse_args(arguments)
    facts: dict[str, Any] = {}
    for name, ask in (
        ("versions", versions), ("nvidia_smi", nvidia_smi), ("nvml", nvml),
        ("torch", lambda: torch_view(given.device)), ("with_context", lambda: with_context(given.device)),
    ):  # fmt: skip
        facts[name] = answered(ask)
        given.file.write_text(json.dumps(facts, indent=1, default=str))
    return 0


def answered(ask: Callable[[], Any]) -> Any:
    """What `ask` returns, with the milliseconds it took; the error where it raises."""
    begun = time.perf_counter()
    try:
        value = ask()
    except Exception as error:  # noqa: BLE001 - it is what the file then says
        value = f"{type(error).__name__}: {error}"
    return {"ms": round(1e3 * (time.perf_counter() - begun), 2), "value": value}


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages; None where one is missing."""
    found: dict[str, str | None] = {"python": sys.version, "cores": str(os.cpu_count())}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def nvidia_smi() -> str:
    """What nvidia-smi prints of the card."""
    return subprocess.run(["nvidia-smi", "-q"], capture_output=True, text=True, timeout=15, check=False).stdout[:20000]


def nvml() -> dict[str, Any]:
    """Each question to NVML by itself, by handle of the first card."""
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    found = {"count": answered(pynvml.nvmlDeviceGetCount), "driver": answered(pynvml.nvmlSystemGetDriverVersion)}
    for name in CARD_QUESTIONS:
        question = getattr(pynvml, f"nvmlDeviceGet{name}", None)
        found[name] = answered(functools.partial(plainly, question, handle)) if question else "not in this binding"
    return found


def plainly(question: Callable[[Any], Any], handle: Any) -> Any:
    """The answer to one question, ready for JSON."""
    return plain(question(handle))


def plain(value: Any) -> Any:
    """A structure of ctypes as a mapping."""
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    fields = getattr(value, "_fields_", None)
    if fields:
        return {name: str(getattr(value, name)) for name, *_ in fields}
    return vars(value) if hasattr(value, "__dict__") else value


def torch_view(device: str) -> dict[str, Any]:
    """The device and the software as gpubench's own probe sees them."""
    import msgspec

    from gpubench.hardware.probe import probe_device, probe_environment

    found: dict[str, Any] = msgspec.to_builtins({"device": probe_device(device), "environment": probe_environment()})
    return found


def with_context(device: str) -> dict[str, Any]:
    """What the driver says once this process has a context there and works: is it listed, do the counters move."""
    import torch

    from gpubench.hardware.find_device import find_device
    from gpubench.hardware.nvml_call import Unavailable

    kind, _, index = device.partition(":")
    work = torch.ones(4096, 4096, device=device)
    found: dict[str, Any] = {"pid": os.getpid()}
    card = find_device(kind, None, int(index or 0)).device
    if card is None or isinstance(card, Unavailable):
        return {**found, "card": str(card)}
    listed = card.processes()
    found["processes"] = answered(lambda: [str(each) for each in listed] if isinstance(listed, list) else str(listed))
    found["own_pid_listed"] = isinstance(listed, list) and any(each.pid == os.getpid() for each in listed)
    found["sample"] = answered(lambda: dataclasses.asdict(card.sample()))
    meter = card.activity_meter()
    readings: list[Any] = [str(meter)] if isinstance(meter, Unavailable) else []
    until = time.monotonic() + ACTIVITY_S
    while not isinstance(meter, Unavailable) and time.monotonic() < until:
        for _ in range(5):
            work = work @ work * 1e-4
        torch.cuda.synchronize()
        if (read := meter.read()) is not None:
            readings.append(str(read))
    found["activity"] = readings
    free, total = torch.cuda.mem_get_info() if kind == "cuda" else (None, None)
    found["mem_get_info"] = {"free": free, "total": total}
    found["samples_ms"] = [answered(card.sample)["ms"] for _ in range(20)]
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main(sys.argv[1:]))
