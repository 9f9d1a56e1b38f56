"""Which cores the threads of an operator may run on: any, or one core each, on which a thread stays.

OMP_PLACES and OMP_PROC_BIND are the OpenMP standard's own variables, so that every runtime that torch is built with
reads them: GNU's, LLVM's and Intel's. GOMP_CPU_AFFINITY and KMP_AFFINITY are read by one of them alone, and binding
from Python would miss threads that OpenMP makes later. They are read when the runtime is loaded, so before Python
starts. The runtime lays its places among the cores that the process may use: a control group's set and `taskset` hold.

The main thread is the first of the team, and what it starts inherits its core: compilers, and the workers of a
DataLoader. gpubench's own process is not bound, and no process but the measured one and what it starts.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench.hardware.cpu import usable_core_ids
from gpubench.measure.start_environment import variable_at_start
from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles.toggle import EvidenceResult, Requirement, Scope, Stage, Toggle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpubench.toggles.model_context import ModelContext

BOUND = {"OMP_PLACES": "cores", "OMP_PROC_BIND": "close"}
TASKS = Path("/proc/self/task")
CORES = Path("/sys/devices/system/cpu")
_TRIAL_S = 0.05  # the kernel updates a running thread's time at least every 10 ms (100 Hz)
_PATIENCE_S = 1.0  # for threads that other processes keep from running


def on_cpu(scope: Scope) -> str | None:
    """Applies on a CPU."""
    return None if scope.device.kind == "cpu" else f"{scope.device.name} does the work, not CPU threads"


def has_cores(scope: Scope) -> str | None:
    """At least two physical cores to choose from."""
    cores = scope.device.physical_cores or scope.device.cores or 1
    return None if cores > 1 else "needs at least two physical cores, this process may use one"


def a_core_for_each(scope: Scope, value: Value, others: Mapping[str, Value]) -> str | None:
    """No more threads than physical cores."""
    threads, cores = others.get("threads"), scope.device.physical_cores
    if value != "one-per-core" or not isinstance(threads, int) or cores is None or threads <= cores:
        return None
    return f"needs a core for each thread: threads={threads}, and there are {plural(cores, 'physical core')}"


def environment(value: Value) -> dict[str, str]:
    """The variables to change for `value`; at the baseline the user's own hold."""
    return dict(BOUND) if value == "one-per-core" else {}


def _run_times_ns() -> dict[str, int]:
    times = {}
    for path in TASKS.glob("*/schedstat"):  # the first number is the thread's run time in nanoseconds (proc(5))
        try:
            times[path.parent.name] = int(path.read_text().split()[0])
        except (OSError, IndexError, ValueError):
            continue  # a thread that has just ended
    return times


def _team(count: int) -> list[str]:
    """The ids of the `count` threads that ran longest during an operation repeated for a while; of fewer, if fewer."""
    import torch

    numbers = torch.ones(1 << 22)  # 16 MiB, far above the 32768 elements from which torch uses several threads
    numbers.sin()  # creates the threads
    before, start, ran = _run_times_ns(), time.perf_counter(), list[str]()
    while len(ran) < count and time.perf_counter() < start + _PATIENCE_S:
        end = time.perf_counter() + _TRIAL_S
        while time.perf_counter() < end:
            numbers.sin()
        spent = {task: now - before.get(task, 0) for task, now in _run_times_ns().items()}
        ran = sorted((task for task, run_time in spent.items() if run_time > 0), key=lambda task: -spent[task])
    return ran[:count]


def _allowed(task: str) -> set[int]:
    """The logical cores that a thread of this process may run on."""
    for line in (TASKS / task / "status").read_text().splitlines():
        if line.startswith("Cpus_allowed_list:"):
            return _numbers(line.partition(":")[2])
    raise ValueError(f"{TASKS}/{task}/status lacks Cpus_allowed_list")


def _numbers(text: str) -> set[int]:
    """The numbers of a list such as `0-3,8`."""
    ends = [part.strip().split("-") for part in text.split(",")]
    return {number for part in ends for number in range(int(part[0]), int(part[-1]) + 1)}


def _physical(core: int) -> frozenset[int]:
    """The logical cores of the physical one that `core` belongs to; itself alone, where the system does not tell."""
    try:
        return frozenset(_numbers((CORES / f"cpu{core}" / "topology" / "thread_siblings_list").read_text()))
    except (OSError, ValueError):
        return frozenset({core})


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether each thread of a trial operation may run on one physical core alone, and no two on the same."""
    if value == "as-is":  # nothing was applied, so that there is nothing to disprove
        bound = variable_at_start("OMP_PROC_BIND")
        words = f"the main thread may run on {plural(len(usable_core_ids()), 'core')}"
        return EvidenceResult(True, f"{words}, and OMP_PROC_BIND is {'unset' if bound is None else repr(bound)}")
    import torch

    count = torch.get_num_threads()
    try:
        team = _team(count)
        places = [_allowed(task) for task in team]
    except (OSError, ValueError) as error:
        return EvidenceResult(None, f"what the threads may run on cannot be read: {error}")
    if not team:
        return EvidenceResult(None, "the kernel does not tell which threads ran in a trial operation")
    homes = [{_physical(core) for core in place} for place in places]
    bound_to = [next(iter(home)) for home in homes if len(home) == 1]
    apart = len(set(bound_to))
    words = (
        f"{plural(len(team), 'thread')} of {count} ran during a trial operation, {len(bound_to)} of them bound to one "
        f"physical core, on {plural(apart, 'different core')}"
    )
    every = len(team) == len(bound_to) == apart
    return EvidenceResult(None if every and len(team) < count else every, words)  # None: some did not get to run


def _usage(value: Value, _: Scope | None) -> str:
    if value == "one-per-core":
        return "\n".join(f"export {name}={text}" for name, text in BOUND.items())
    return f"unset {' '.join(BOUND)}"


AFFINITY = Toggle(
    name="affinity",
    summary="Whether each thread of an operator stays on a core of its own.",
    values={
        "as-is": "as the environment has it: the kernel moves threads from core to core, unless it is set otherwise",
        "one-per-core": "OpenMP binds each thread to a physical core of its own",
    },
    stage=Stage.ENVIRONMENT,
    applies=on_cpu,
    requires={"one-per-core": Requirement(device_kinds=("cpu",), check=has_cores)},
    check=a_core_for_each,
    environment=environment,
    evidence=evidence,
    usage=_usage,
    source="OpenMP API Specification 5.2, environment variables: OMP_PLACES and OMP_PROC_BIND",
)
