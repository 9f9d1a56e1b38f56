"""How many threads one operator is spread over on a CPU."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench.toggles.toggle import EvidenceResult, Integers, Scope, Stage, Toggle, Value

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext

_BUSY_CORES = 1.2  # one thread keeps at most one core busy; the rest is for the inexactness of the clocks


def on_cpu(scope: Scope) -> str | None:
    """Applies on a CPU."""
    return None if scope.device.kind == "cpu" else f"the work is done on {scope.device.name}, not by CPU threads"


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
    # The first number of schedstat is the time that the thread has run, in nanoseconds (Linux, proc(5)).
    times = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            times[path.parent.name] = int(path.read_text().split()[0])
        except (OSError, IndexError, ValueError):
            continue  # a thread that has just ended
    return times


@dataclass(frozen=True)
class _Trial:
    """What one elementwise operation, repeated for a while, was computed by."""

    threads: int | None  # OS threads that ran meanwhile; None where the kernel does not tell
    cores: float  # seconds of CPU time per second

    def shared(self) -> bool | None:
        """Whether more than one thread did the work; None where that cannot be told."""
        if self.threads is not None:
            return self.threads > 1
        return True if self.cores > _BUSY_CORES else None  # below it, others may have been using the cores


def _trial() -> _Trial:
    import torch

    numbers = torch.ones(1 << 22)  # 16 MiB, far above the 32768 elements at which torch begins to share work
    numbers.sin()  # threads that are yet to be created are created here
    before, start, cpu = _run_times_ns(), time.perf_counter(), time.process_time()
    # The kernel adds a running thread's time up at its ticks, at the rarest every 10 ms (100 Hz): wait for three.
    while time.perf_counter() < start + 0.03:
        numbers.sin()
    cores = (time.process_time() - cpu) / (time.perf_counter() - start)
    worked = sum(spent > before.get(task, 0) for task, spent in _run_times_ns().items())
    return _Trial(threads=worked or None, cores=cores)  # 0: a kernel that keeps no such account shows zeros


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether torch's thread pool has that size, and whether threads really shared a trial operation."""
    import torch

    count, trial = torch.get_num_threads(), _trial()
    seen = f"{trial.threads} OS threads ran" if trial.threads else "how many OS threads ran cannot be read here"
    words = f"torch.get_num_threads() is {count}; {seen} during a trial operation"
    if not trial.threads:
        words += f", which kept {trial.cores:.1f} cores busy"
    # A pool of one cannot share anything: its size is the whole proof, since threads that do other work may run too.
    took_effect = False if count != value else True if count == 1 else trial.shared()
    return EvidenceResult(took_effect=took_effect, detail=words)


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
