"""One NVML call that returns a value or the reason why there is none: it never raises, and it never blocks for long."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

# Of nvml.h, whose numbers never change. Written out, because foreign packages of the name pynvml lack some of them.
SUCCESS = 0
UNINITIALIZED, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 1, 3, 4, 6
DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND = 9, 12, 13
GPU_IS_LOST, RESET_REQUIRED, LIB_RM_VERSION_MISMATCH = 15, 16, 18
BLOCKED, FOREIGN = -1, -2  # not NVML's: a call that was given up; the package is another one
TEMPERATURE_GPU, CLOCK_SM, CLOCK_MEM = 0, 1, 2

LIMIT_S = 2.0  # for one call, which takes 10 us to 50 ms
STUCK_LIMIT_S = 0.2  # while an earlier call still hangs: the driver may have stopped answering altogether
INIT_LIMIT_S = 60.0  # without persistence mode the driver wakes every card first, some seconds each


@dataclass(frozen=True)
class Unavailable:
    """Why something cannot be read; one sentence without a full stop, so that others can quote it."""

    reason: str
    code: int | None = None  # NVML's, where NVML said so; BLOCKED or FOREIGN


def where_known(function: Callable[..., T], *values: object) -> T | Unavailable:
    """`function(*values)`, or the first of `values` that is `Unavailable`."""
    missing = next((value for value in values if isinstance(value, Unavailable)), None)
    return function(*values) if missing is None else missing


SENTENCES = {
    UNINITIALIZED: "NVML is not initialized",
    NOT_SUPPORTED: "this device does not support it (NVML: not supported)",
    NO_PERMISSION: "this user may not read it (NVML: no permission)",
    NOT_FOUND: "NVML found no such device",
    DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded",
    LIBRARY_NOT_FOUND: "no NVIDIA driver is installed (libnvidia-ml.so.1 is missing)",
    FUNCTION_NOT_FOUND: "this driver's NVML has no such function",
    GPU_IS_LOST: "the GPU is lost: it fell off the bus",
    RESET_REQUIRED: "the GPU needs a reset",
    LIB_RM_VERSION_MISMATCH: (
        "the NVIDIA driver in the kernel and its NVML library differ in version: restart after the driver's update"
    ),
}


def sentence(code: int) -> str:
    """What an NVML error code means, in words."""
    module = binding()
    named = "" if isinstance(module, Unavailable) else f" ({module.NVMLError(code)})"
    return SENTENCES.get(code) or f"NVML error {code}{named}"


# ----- the package


@functools.cache
def binding() -> Any:
    """The module pynvml of the package nvidia-ml-py, or `Unavailable` naming the package that took its place."""
    try:
        module = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        return Unavailable("the package nvidia-ml-py is not installed: pip install nvidia-ml-py", FOREIGN)
    except Exception as error:  # noqa: BLE001 - a foreign package may raise anything
        return _foreign(f"cannot be imported ({type(error).__name__}: {error})", None)
    # What errors are told by, and text instead of bytes: since nvidia-ml-py 11.515.
    if all(hasattr(module, name) for name in ("NVMLError", "NVMLLibraryMismatchError", "convertStrBytes")):
        return module
    return _foreign(f"is that of {_package(module)}, which lacks what is needed", module)


def _foreign(what: str, module: ModuleType | None) -> Unavailable:
    names = [name for name in importlib.metadata.packages_distributions().get("pynvml", []) if name != "nvidia-ml-py"]
    remove = f"pip uninstall {' '.join(dict.fromkeys(names))}, then " if names else ""
    return Unavailable(f"the Python module pynvml {what}: {remove}pip install --force-reinstall nvidia-ml-py", FOREIGN)


def _package(module: ModuleType) -> str:
    """The package that `module` is from, with its version."""
    file = Path(module.__file__ or "").resolve()
    for name in dict.fromkeys(importlib.metadata.packages_distributions().get("pynvml", [])):
        found = importlib.metadata.distribution(name)
        if any(Path(str(found.locate_file(path))).resolve() == file for path in found.files or ()):
            return f"the package {name} {found.version}"
    return f"an unknown package ({file.name})"


# ----- one call


def plausible(value: Any, lowest: float, highest: float) -> Any:
    """`value` where it lies between two bounds, else `Unavailable`: drivers fill in -1 for what they do not know."""
    if isinstance(value, Unavailable) or lowest <= value <= highest:
        return value
    return Unavailable(f"NVML gave {value}, which cannot be")


def attempt(function: str, *arguments: object) -> Any:
    """What `pynvml.<function>(*arguments)` returns, or `Unavailable`.

    A call that has no answer after some seconds is given up, and that function is not called again.
    """
    module = binding()
    if isinstance(module, Unavailable):
        return module
    call = getattr(module, function, None)
    if call is None:
        return Unavailable(f"the installed nvidia-ml-py has no {function}")
    return _CALLER.answer(function, lambda: _answer(module, function, call, arguments))


def _answer(module: Any, function: str, call: Callable[..., Any], arguments: tuple[object, ...]) -> Any:
    try:
        return call(*arguments)
    except module.NVMLError as error:
        return Unavailable(sentence(error.value), error.value)
    except module.NVMLLibraryMismatchError:
        # The binding asked for a newer version of the function than the driver has.
        return Unavailable(sentence(FUNCTION_NOT_FOUND), FUNCTION_NOT_FOUND)
    except UnicodeDecodeError:
        return Unavailable(f"{function} gave text that is not UTF-8")


class Caller:
    """Calls in a thread of its own and waits only so long: a call into a driver cannot be interrupted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocked: dict[str, Unavailable] = {}
        self._hanging: list[threading.Event] = []  # each is set when the call that was given up returns
        self._calls: queue.SimpleQueue[_Call] | None = None
        self._pid = 0

    def answer(self, function: str, call: Callable[[], Any]) -> Any:
        """What `call` returns or raises, or `Unavailable` where `function` does not answer."""
        with self._lock:
            if function in self._blocked:
                return self._blocked[function]
            if self._calls is None or self._pid != os.getpid():  # a forked process has no threads of its parent
                self._calls, self._pid = queue.SimpleQueue(), os.getpid()
                threading.Thread(target=_serve, args=(self._calls,), name="gpubench-nvml", daemon=True).start()
            self._hanging = [done for done in self._hanging if not done.is_set()]
            limit = INIT_LIMIT_S if function == "nvmlInit" else STUCK_LIMIT_S if self._hanging else LIMIT_S
            asked = _Call(call)
            self._calls.put(asked)
            if asked.done.wait(limit):
                if asked.error is not None:
                    raise asked.error
                return asked.result
            self._hanging.append(asked.done)
            self._calls = None  # its thread hangs; the next call gets another
            self._blocked[function] = Unavailable(
                f"NVML did not answer {function} within {limit:g} s, so it is not asked again", BLOCKED
            )
            return self._blocked[function]


class _Call:
    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None


def _serve(calls: queue.SimpleQueue[_Call]) -> None:
    while True:
        asked = calls.get()
        try:
            asked.result = asked.call()
        except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
            asked.error = error
        asked.done.set()


_CALLER = Caller()
