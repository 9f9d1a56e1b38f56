"""A third-party toggle whose values are faults: each spoils the step, the process or the machine in one way.

It comes as another distribution's would, by an entry point on the path, and is in every process of the run.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from gpubench.report.model import Value
from gpubench.toggles import all_toggles
from gpubench.toggles.toggle import EvidenceResult, Stage, Toggle

if TYPE_CHECKING:
    import torch

    from gpubench.toggles.model_context import ModelContext

LOG = "GPUBENCH_TEST_FOLDER"  # environment variable: the folder in which faults and tests tell each other things
MIB = 2**20
HOARD_BYTES = 512 * MIB
LEAK_BYTES = 64 * MIB
OUTSIDE_BYTES = 256 * MIB
Action = Callable[["torch.Tensor"], Any]

_kept: list[Any] = []


def install(folder: Path) -> dict[str, str]:
    """Makes the toggle known to processes with the environment variables returned; what it tells is in `folder`."""
    info = folder / "planted-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[gpubench.toggles]\nfault = tests.faults.fault_toggle:FAULT\n")
    root = Path(__file__).parents[2]
    return {"PYTHONPATH": f"{folder}{os.pathsep}{root}", LOG: str(folder)}


@contextlib.contextmanager
def planted(folder: Path) -> Iterator[None]:
    """Makes the toggle known to this process and to those that it starts."""
    in_order = sorted([*all_toggles().values(), FAULT], key=lambda one: (one.stage, one.name))
    known = {one.name: one for one in in_order}
    with mock.patch.dict(os.environ, install(folder)), mock.patch.dict(all_toggles(), known, clear=True):
        yield


def order(folder: Path) -> list[str]:
    """The values in the order in which processes took them up."""
    path = folder / "order.txt"
    return path.read_text().split() if path.exists() else []


def _folder() -> Path:
    return Path(os.environ[LOG])


# ----- what ends a process


def _signalled(number: int) -> Action:
    def action(out: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), number)
        return out

    return action


def _kill_server(out: torch.Tensor) -> torch.Tensor:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
    return out


def _exit(out: torch.Tensor) -> torch.Tensor:
    os._exit(3)


def _raise(out: torch.Tensor) -> torch.Tensor:
    print("about to fail")
    raise ValueError("the [red]user's[/red] own mistake")


def _take_all_memory(out: torch.Tensor) -> torch.Tensor:
    import torch

    _hoard(out)
    torch.ones(1 << 40)
    return out


def _hang(out: torch.Tensor) -> torch.Tensor:
    child = subprocess.Popen(["sleep", "3600"])  # what it has started must end with it
    (_folder() / "child.txt").write_text(str(child.pid))
    time.sleep(3600)
    return out


def _while_sampling(action: Action) -> Action:
    """`action` at the third step that is timed: samples are taken while the garbage collector rests."""
    timed = 0

    def later(out: torch.Tensor) -> Any:
        nonlocal timed
        timed += not gc.isenabled()
        return action(out) if timed >= 3 else out

    return later


def _in_later_processes(action: Action, value: Value) -> Action:
    """`action` in every process of `value` but the first."""
    first = order(_folder()).count(str(value)) <= 1
    return (lambda out: out) if first else action


# ----- what spoils the output


def _one_nan(out: torch.Tensor) -> torch.Tensor:
    out = out.clone()
    out.view(-1)[7] = float("nan")
    return out


def _stale() -> Action:
    """Right for the first step and once for each of two inputs, then the first output for ever: a static buffer."""
    seen: list[Any] = []

    def action(out: torch.Tensor) -> torch.Tensor:
        seen.append(out)
        return out if len(seen) <= 3 else seen[0]

    return action


# ----- what takes memory


def _hoard(out: torch.Tensor) -> torch.Tensor:
    import torch

    if not _kept:
        _kept.append(torch.ones(HOARD_BYTES // 4))
    return out


def _leak(out: torch.Tensor) -> torch.Tensor:
    import torch

    _kept.append(torch.ones(LEAK_BYTES // 4))
    return out


def _outside(out: torch.Tensor) -> torch.Tensor:
    """Takes room that torch knows nothing of, and gives it back within the step."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    room = libc.malloc(OUTSIDE_BYTES)
    ctypes.memset(room, 1, OUTSIDE_BYTES)
    libc.free(room)
    return out


# ----- what changes the process for whoever comes next


def _mess_up(out: torch.Tensor) -> torch.Tensor:
    import torch

    torch.set_num_threads(3)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("medium")
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.deterministic = True
    os.environ["GPUBENCH_TEST_MESS"] = "here"
    return out


def _not_as_it_should_be(context: ModelContext) -> list[str]:
    """What of this process is not as a fresh one is, by name."""
    import torch

    expected = {
        "threads": (torch.get_num_threads(), context.configuration["threads"]),
        "default dtype": (torch.get_default_dtype(), torch.float32),
        "deterministic algorithms": (torch.are_deterministic_algorithms_enabled(), False),
        "matmul precision": (torch.get_float32_matmul_precision(), "highest"),
        "TF32 in matmul": (torch.backends.cuda.matmul.allow_tf32, False),
        "TF32 in cuDNN": (torch.backends.cudnn.allow_tf32, False),
        "cudnn.benchmark": (torch.backends.cudnn.benchmark, False),
        "cudnn.deterministic": (torch.backends.cudnn.deterministic, False),
        "environment": (os.environ.get("GPUBENCH_TEST_MESS"), None),
        "memory kept": (len(_kept), 0),
        "children left": (_left_children(), []),
    }
    return [f"{name} is {found}" for name, (found, wanted) in expected.items() if found != wanted]


def _left_children() -> list[int]:
    path = _folder() / "child.txt"
    if not path.exists():
        return []
    try:
        state = Path(f"/proc/{path.read_text()}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return []
    return [] if state == "Z" else [int(path.read_text())]


# ----- the toggle

LOOKS = tuple(f"look{number}" for number in range(1, 11))  # as the baseline, and say what is not as it should be
ENDS: dict[str, Action] = {
    "segfault": _signalled(signal.SIGSEGV),
    "killed": _signalled(signal.SIGKILL),
    "exit": _exit,
    "kill-server": _kill_server,
    "raise": _raise,
    "oom": _take_all_memory,
    "hang": _hang,
}
LEAVES: dict[str, Action] = {"mess": _mess_up, "hoard": _hoard}
WRONG: dict[str, Action] = {
    "nan": lambda out: out * float("nan"),
    "one-nan": _one_nan,
    "zeros": lambda out: out * 0,
    "double": lambda out: out * 2,
    "integers": lambda out: out.int(),
    "complex": lambda out: out + 0j,
    "shape": lambda out: out[:2],
}
TAKES: dict[str, Action] = {"leak": _leak, "outside": _outside}
LATER: dict[str, Action] = {  # good in their first process
    "later-double": WRONG["double"],
    "later-segfault": _while_sampling(ENDS["segfault"]),
    "later-kill-server": _while_sampling(_kill_server),
}
MADE = ("stale", "die-sampling", "kill-server-sampling")  # with a memory of their own in each process
FAST = ("fast", "as-fast")  # honest, with half of the pause
VALUES: tuple[str, ...] = ("off", *LOOKS, *ENDS, *LEAVES, *WRONG, *TAKES, *LATER, *MADE, *FAST)


def _action(value: str) -> Action:
    if value in LATER:
        return _in_later_processes(LATER[value], value)
    if value == "stale":
        return _stale()
    if value == "die-sampling":
        return _while_sampling(ENDS["segfault"])
    if value == "kill-server-sampling":
        return _while_sampling(_kill_server)
    return {**ENDS, **LEAVES, **WRONG, **TAKES}.get(value, lambda out: out)


def apply(context: ModelContext, value: Value) -> None:
    """Hooks the fault of `value` into the model, and notes that a process took it up."""
    with (_folder() / "order.txt").open("a") as file:
        file.write(f"{value}\n")
    model: Any = context.model
    if value in WRONG or value == "stale":
        model.pause_s = 0.0
    elif value in LATER or value in FAST:
        model.pause_s /= 2
    action = _action(str(value))
    model.register_forward_hook(lambda module, args, out: action(out))


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """A row that looks has no effect where something is not as in a fresh process; the others claim to be fine."""
    found = _not_as_it_should_be(context) if value in LOOKS else []
    return EvidenceResult(took_effect=not found, detail="; ".join(found) or "as planted")


FAULT = Toggle(
    name="fault",
    summary="A planted fault.",
    values=dict.fromkeys(VALUES, "a planted fault"),
    stage=Stage.MODEL,
    apply=apply,
    evidence=evidence,
    usage=lambda value, _: f"# a planted fault: {value}",
    source="planted",
)
