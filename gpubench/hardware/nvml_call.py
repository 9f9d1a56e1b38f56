"""One NVML call that returns a value or the reason why there is none, and never raises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml

T = TypeVar("T")


@dataclass(frozen=True)
class Unavailable:
    """Why something cannot be read; one sentence without a full stop, so that others can quote it."""

    reason: str
    code: int | None = None  # NVML's, where NVML said so


def where_known(function: Callable[..., T], *values: object) -> T | Unavailable:
    """`function(*values)`, or the first of `values` that is `Unavailable`."""
    missing = next((value for value in values if isinstance(value, Unavailable)), None)
    return function(*values) if missing is None else missing


SENTENCES = {
    pynvml.NVML_ERROR_UNINITIALIZED: "NVML is not initialized",
    pynvml.NVML_ERROR_NOT_SUPPORTED: "this device does not support it (NVML: not supported)",
    pynvml.NVML_ERROR_NO_PERMISSION: "this user may not read it (NVML: no permission)",
    pynvml.NVML_ERROR_NOT_FOUND: "NVML found no such device",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver is installed (libnvidia-ml.so.1 is missing)",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "this driver's NVML has no such function",
    pynvml.NVML_ERROR_GPU_IS_LOST: "the GPU is lost: it fell off the bus",
    pynvml.NVML_ERROR_RESET_REQUIRED: "the GPU needs a reset",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the NVIDIA driver in the kernel and its NVML library differ in version: restart after the driver's update"
    ),
}


def sentence(code: int) -> str:
    """What an NVML error code means, in words."""
    return SENTENCES.get(code) or f"NVML error {code} ({pynvml.NVMLError(code)})"


def attempt(function: str, *arguments: object) -> Any:
    """What `pynvml.<function>(*arguments)` returns, or `Unavailable`."""
    call = getattr(pynvml, function, None)
    if call is None:
        return Unavailable(f"the installed nvidia-ml-py has no {function}")
    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        return Unavailable(sentence(error.value), error.value)
    except pynvml.NVMLLibraryMismatchError:
        # The binding asked for a newer version of the function than the driver has.
        return Unavailable(sentence(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND), pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    except UnicodeDecodeError:
        return Unavailable(f"{function} gave text that is not UTF-8")
