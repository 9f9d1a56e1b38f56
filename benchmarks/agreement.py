"""Whether a median from gpubench agrees with that of other tools on the same step. Goal: within 1 %.

On a CPU the other is torch.utils.benchmark, on a GPU triton.testing.do_bench.

Both time the same model in this one process, in turns (gpubench, torch, torch, gpubench, ...), because two processes
of the same program differ by more than the goal for reasons that are none of the timers'. On a CPU the allocator is
held steady for the same reason: glibc's default one alone moves single medians by some per cent.

    python benchmarks/agreement.py [ROUNDS]
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable

import torch
from torch.utils.benchmark import Timer as TorchTimer

from gpubench.measure.steady import warm_up
from gpubench.measure.stopping import StoppingRule
from gpubench.measure.timing import CudaTimer, WallTimer, calibrate, sample
from gpubench.toggles.environment.allocator import ALLOCATOR
from gpubench.worker.messages import WorkloadChoice
from gpubench.worker.prepare import apply_toggles, build, load_choice, make_batches
from gpubench.worker.step import Stepper
from gpubench.workloads.workload_facts import Mode


def other_tool(step: Callable[[], object], device: torch.device) -> tuple[str, Callable[[], float]]:
    """The other tool's name, and a call that gives its median in seconds."""
    if device.type == "cuda":
        from triton.testing import do_bench

        # It clears the L2 cache before every call, which a whole model fills many times over anyway.
        return "triton.testing.do_bench", lambda: do_bench(step, warmup=100, rep=500, return_mode="median") / 1e3
    timer = TorchTimer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return "torch.utils.benchmark", lambda: timer.blocked_autorange(min_run_time=0.5).median


def main() -> None:
    """Prints both medians for each workload, and their ratio."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    if not torch.cuda.is_available() and "GLIBC_TUNABLES" not in os.environ:
        os.environ.update(ALLOCATOR.environment("tuned") if ALLOCATOR.environment else {})
        os.execv(sys.executable, [sys.executable, *sys.argv])  # the allocator reads it before Python starts
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    workloads: tuple[tuple[str, Mode], ...] = (
        ("resnet50", "inference"),
        ("vae", "inference"),
        ("unet3d", "training"),
    )
    for name, mode in workloads:
        size = "base" if device.type == "cuda" else "small"
        loaded, chosen = load_choice(WorkloadChoice(reference=name, size=size, parameters={}, mode=mode))
        configuration: dict[str, str | int] = {"precision": "fp32", "optimizer": "for-loop"}
        if mode == "inference":
            del configuration["optimizer"]
        context = build(loaded, chosen, device, configuration, 0)
        apply_toggles(context, make_batches(loaded, context.batch_size, 2, 0))
        stepper = Stepper(context)
        timer = CudaTimer(device) if device.type == "cuda" else WallTimer()
        warm = warm_up(stepper.step, timer, min_iterations=3, max_s=5.0, block_s=0.05)
        iterations = calibrate(warm.seconds_per_iteration, 0.05)
        rule = StoppingRule(min_samples=10, min_s=0.5, target_spread=1.0, max_s=10.0)
        name_of_other, measure_other = other_tool(stepper.step, device)
        ours: list[float] = []
        theirs: list[float] = []
        for index in range(rounds):
            for side in ("ours", "theirs") if index % 2 else ("theirs", "ours"):
                if side == "ours":
                    taken = sample(stepper.step, timer, iterations=iterations, rule=rule)
                    ours.append(statistics.median(taken.device_seconds or taken.seconds))
                else:
                    theirs.append(measure_other())
        ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
        print(
            f"{name} {mode}: gpubench {statistics.median(ours) * 1e3:.3f} ms, {name_of_other} "
            f"{statistics.median(theirs) * 1e3:.3f} ms, median ratio {ratio:.4f} ({rounds} rounds; goal within 1 %)"
        )


if __name__ == "__main__":
    main()
