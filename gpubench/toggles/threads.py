"""How many threads one operator is spread over on a CPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench.toggles.toggle import Integers, Proof, Scope, Stage, Toggle, Value

if TYPE_CHECKING:
    from gpubench.toggles.subject import Subject


def on_cpu(scope: Scope) -> str | None:
    """Applies on a CPU."""
    return None if scope.device.kind == "cpu" else f"the work is done on {scope.device.name}, not by CPU threads"


def offers(scope: Scope) -> tuple[Value, ...]:
    """One thread per physical core, then the powers of two below that, then one per logical core."""
    logical = scope.device.cores or 1
    physical = min(scope.device.physical_cores or logical, logical)
    powers = [1 << exponent for exponent in range(physical.bit_length()) if 1 << exponent < physical]
    return tuple(dict.fromkeys((physical, *powers, logical)))


def apply(subject: Subject, value: Value) -> None:
    """Sets the size of torch's intra-operator thread pool."""
    import torch

    torch.set_num_threads(int(value))


def _run_times_ns() -> dict[str, int]:
    # The first number of schedstat is the time that the thread has run, in nanoseconds (Linux, proc(5)).
    times = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            times[path.parent.name] = int(path.read_text().split()[0])
        except (OSError, IndexError, ValueError):
            continue  # a thread that has just ended
    return times


def _threads_that_worked() -> int | None:
    """The number of OS threads that shared one elementwise operation; None where the kernel does not tell."""
    import torch

    numbers = torch.ones(1 << 22)  # 16 MiB, far above the 32768 elements at which torch begins to share work
    numbers.sin()  # threads that are yet to be created are created here
    before = _run_times_ns()
    if not before:
        return None
    # The kernel adds a running thread's time up at its ticks, at the rarest every 10 ms (100 Hz): wait for three.
    end = time.perf_counter() + 0.03
    while time.perf_counter() < end:
        numbers.sin()
    return sum(spent > before.get(task, 0) for task, spent in _run_times_ns().items())


def evidence(subject: Subject, value: Value) -> Proof:
    """Whether torch's thread pool has that size, and how many threads shared a trial operation."""
    import torch

    count = torch.get_num_threads()
    worked = _threads_that_worked()
    seen = f"{worked} OS threads ran" if worked is not None else "how many OS threads ran cannot be read here"
    return Proof(
        took_effect=count == value, detail=f"torch.get_num_threads() is {count}; {seen} during a trial operation"
    )


THREADS = Toggle(
    name="threads",
    summary="CPU threads per operator; one per physical core is the baseline.",
    values={},
    stage=Stage.BACKEND,
    applies=on_cpu,
    offers=offers,
    # 1024 is above the core count of any CPU server known to us, and low enough to catch a slip of the finger.
    integers=Integers(low=1, high=1024, meaning="threads per operator"),
    apply=apply,
    evidence=evidence,
    usage=lambda value: f"torch.set_num_threads({value})",
    claims=("mmrec-cpu",),
    source="PyTorch documentation: CPU threading and TorchScript inference, tuning the number of threads",
)
