"""How many CPU threads one operator uses."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles.toggle import EvidenceResult, Integers, Scope, Stage, Toggle

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext

_BUSY_CORES = 1.2  # one thread keeps at most one core busy; the rest allows for inexact clocks


def on_cpu(scope: Scope) -> str | None:
    """Applies on a CPU."""
    return None if scope.device.kind == "cpu" else f"{scope.device.name} does the work, not CPU threads"


def offers(scope: Scope) -> tuple[Value, ...]:
    """One thread per physical core, then the powers of two below that, then one per logical core."""
    logical = scope.device.cores or 1
    physical = min(scope.device.physical_cores or logical, logical)
    powers = [1 << exponent for exponent in range(physical.bit_length()) if 1 << exponent < physical]
    return tuple(dict.fromkeys((physical, *powers, logical)))


def apply(context: ModelContext, value: Value) -> None:
    """Sets the size of torch's intra-operator thread pool."""
    import torch

    torch.set_num_threads(int(value))


def _run_times_ns() -> dict[str, int]:
    # The first number in schedstat is the thread's run time in nanoseconds (Linux, proc(5)).
    times = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            times[path.parent.name] = int(path.read_text().split()[0])
        except (OSError, IndexError, ValueError):
            continue  # a thread that has just ended
    return times


def _trial() -> tuple[int, float]:
    """OS threads that ran during an elementwise operation, repeated for a while, and cores that it kept busy.

    A kernel that does not report the threads' times gives 0 threads.
    """
    import torch

    numbers = torch.ones(1 << 22)  # 16 MiB, far above the 32768 elements from which torch uses several threads
    numbers.sin()  # creates the threads
    before, start, cpu = _run_times_ns(), time.perf_counter(), time.process_time()
    # The kernel updates a running thread's time at least every 10 ms (100 Hz): wait for three updates.
    while time.perf_counter() < start + 0.03:
        numbers.sin()
    cores = (time.process_time() - cpu) / (time.perf_counter() - start)
    return sum(spent > before.get(task, 0) for task, spent in _run_times_ns().items()), cores


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether torch's thread pool has that size and a trial operation ran on several threads."""
    import torch

    count, (threads, cores) = torch.get_num_threads(), _trial()
    seen = plural(threads, "OS thread") if threads else "an unknown number of OS threads"
    ran = f"{seen} ran during a trial operation"
    words = f"torch.get_num_threads() is {count}; {ran}"
    if not threads:
        words += f", which kept {cores:.1f} cores busy"
    # Below _BUSY_CORES, other processes may have used the cores.
    shared = threads > 1 if threads else True if cores > _BUSY_CORES else None
    # For a pool of one its size is enough: other threads that ran may have done other work.
    took_effect = False if count != value else True if count == 1 else shared
    return EvidenceResult(took_effect, words)


THREADS = Toggle(
    name="threads",
    summary="CPU threads per operator; the baseline is one per physical core.",
    values={},
    stage=Stage.BACKEND,
    applies=on_cpu,
    offers=offers,
    # 1024 is above the core count of any CPU server known to us, and low enough to catch a typing error.
    integers=Integers(low=1, high=1024, meaning="threads per operator"),
    apply=apply,
    evidence=evidence,
    usage=lambda value, _: f"torch.set_num_threads({value})",
    claims=("mmrec-cpu",),
    source="PyTorch documentation: CPU threading and TorchScript inference, tuning the number of threads",
)
