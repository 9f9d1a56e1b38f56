"""Quantities as people write them: `8GiB`, `90s`, `5%`."""

from __future__ import annotations

import math
import re

from gpubench.errors import GpubenchError

BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
BYTES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
# Durations below so many seconds are multiplied by that factor and shown in that unit.
DURATIONS = ((1e-6, 1e9, "ns"), (1e-3, 1e6, "us"), (1, 1e3, "ms"), (120, 1, "s"), (7200, 1 / 60, "min"))
BEYOND = 10.0  # shares that are not told any nearer
SHARE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(%?)\s*")
QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Bytes, from `8GiB`, `500 MB` or `1073741824` (no unit: bytes).

    Raises GpubenchError for anything else, for zero, and for less than one byte.
    """
    number, unit = _parse(text, BYTES, "size", "8GiB, 500MB or a number of bytes")
    size = round(number * BYTES[unit or "b"])
    if size < 1:
        raise GpubenchError(f"The size {text!r} is less than one byte.", "Give for example 8GiB.")
    return size


def parse_duration(text: str) -> float:
    """Seconds, from `90s`, `2min`, `1h`, `500ms` or `90` (no unit: seconds).

    Raises GpubenchError for anything else and for zero.
    """
    number, unit = _parse(text, SECONDS, "duration", "90s, 2min or a number of seconds")
    seconds = number * SECONDS[unit or "s"]
    if seconds <= 0:
        raise GpubenchError(f"The duration {text!r} is zero.", "Give for example 90s.")
    return seconds


def parse_share(text: str) -> float:
    """A share from 0 on, from `5%` or `0.05`.

    Raises GpubenchError for anything else, and for 1 or more without a percent sign: `5` is more likely 5 % than 500 %.
    """
    match = SHARE.fullmatch(text)
    number = float(match[1]) if match else math.inf
    share = number / 100 if match and match[2] else number
    if match is None or not math.isfinite(share) or (not match[2] and share >= 1):
        raise GpubenchError(f"Cannot read the share {text!r}.", "Give for example 5% or 0.05.")
    return share


def _parse(text: str, units: dict[str, float] | dict[str, int], kind: str, examples: str) -> tuple[float, str]:
    match = QUANTITY.fullmatch(text)
    unit = match[2].lower() if match else ""
    if match is None or (unit and unit not in units) or not math.isfinite(float(match[1])):
        raise GpubenchError(f"Cannot read the {kind} {text!r}.", f"Give {examples}; units: {', '.join(units)}.")
    return float(match[1]), unit


def format_bytes(size: float) -> str:
    """Three significant figures with a binary unit: `1.25 GiB`, `512 B`, `-20.0 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{significant(size)} {unit}"
        size /= 1024
    return f"{significant(size)} TiB"


def format_duration(seconds: float) -> str:
    """Three significant figures with a unit from ns to h: `12.3 ms`, `4.00 s`, `2.50 min`."""
    for limit, factor, unit in DURATIONS:
        if abs(seconds) < limit:
            return f"{significant(seconds * factor)} {unit}"
    return f"{significant(seconds / 3600)} h"


def format_percent(share: float, *, sign: bool = True) -> str:
    """`+1.2%`, `over +1000%`: beyond `BEYOND` no nearer than that; without the plus where no sign is asked for."""
    if share >= BEYOND:
        return f"over {'+' if sign else ''}{BEYOND:.0%}"
    text = f"{share:+.1%}" if sign else f"{share:.1%}"
    return text.replace("-0.0%", "+0.0%" if sign else "0.0%")


def significant(number: float, digits: int = 3) -> str:
    """`number` with `digits` significant figures and no exponent below a billion."""
    if number == 0 or not math.isfinite(number):
        return f"{number:.0f}"
    if abs(number) >= 1e9:
        return f"{number:.{digits - 1}e}"
    decimals = digits - 1 - math.floor(math.log10(abs(number)))
    return f"{number:.{min(max(decimals, 0), 12)}f}"
