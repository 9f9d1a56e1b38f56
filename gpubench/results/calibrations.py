"""Where this machine's own noise is kept between runs: one small JSON file for each device and software."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from gpubench.errors import GpubenchError
from gpubench.results.schema import Calibration

VARIABLE = "GPUBENCH_STATE"  # environment variable: the folder, where the default is not wanted


def folder() -> Path:
    """The folder of calibrations: XDG's place for what a program has learned (XDG Base Directory Specification)."""
    if own := os.environ.get(VARIABLE):
        return Path(own)
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state, "gpubench", "calibrations")


def save(calibration: Calibration) -> Path:
    """Keeps `calibration` for later runs; the file. GpubenchError where it cannot be written."""
    path = folder() / f"{calibration.fingerprint}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(calibration), indent=2) + b"\n")
        partial.replace(path)
    except OSError as error:
        raise GpubenchError(
            f"The calibration cannot be kept in {path.parent}: {error.strerror}.", f"Name another folder in {VARIABLE}."
        ) from error
    return path


def load(fingerprint: str) -> Calibration | None:
    """The calibration of that device and software; None where there is none, or none that can be read."""
    try:
        found = msgspec.json.decode((folder() / f"{fingerprint}.json").read_bytes(), type=Calibration)
    except (OSError, msgspec.DecodeError):
        return None  # it is only a better guess at the noise, and the report says which one it used
    return found if found.fingerprint == fingerprint else None
