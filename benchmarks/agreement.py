"""Whether a median from gpubench agrees with torch.utils.benchmark on the same step. Goal: within 2 %.

Both time the same model in this one process, in turns (gpubench, torch, torch, gpubench, ...), because two processes
of the same program differ by more than the goal for reasons that are none of the timers'. On a CPU the allocator is
held steady for the same reason: glibc's default one alone moves single medians by some per cent.

    python benchmarks/agreement.py [ROUNDS]
"""

from __future__ import annotations

import os
import statistics
import sys

import torch
from torch.utils.benchmark import Timer as TorchTimer

from gpubench.measure.timing import CudaTimer, Stopping, WallTimer, calibrate, sample, warm_up
from gpubench.toggles.allocator import ALLOCATOR
from gpubench.worker.messages import WorkloadChoice
from gpubench.worker.prepare import apply_toggles, build, load_choice, make_batches
from gpubench.worker.step import Stepper


def main() -> None:
    """Prints both medians for each workload, and their ratio."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    if not torch.cuda.is_available() and "GLIBC_TUNABLES" not in os.environ:
        os.environ.update(ALLOCATOR.environment("tuned") if ALLOCATOR.environment else {})
        os.execv(sys.executable, [sys.executable, *sys.argv])  # the allocator reads it before Python starts
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    for name, mode in (("resnet50", "inference"), ("vae", "inference"), ("unet3d", "training")):
        size = "base" if device.type == "cuda" else "small"
        loaded, chosen = load_choice(WorkloadChoice(reference=name, size=size, parameters={}, mode=mode))
        configuration: dict[str, str | int] = {"precision": "fp32", "optimizer": "for-loop"}
        if mode == "inference":
            del configuration["optimizer"]
        subject = build(loaded, chosen, device, configuration, 0)
        apply_toggles(subject, make_batches(loaded, subject.batch_size, 2, 0))
        stepper = Stepper(subject)
        timer = CudaTimer(device) if device.type == "cuda" else WallTimer()
        warm = warm_up(stepper.step, timer, min_iterations=3, max_s=5.0, block_s=0.05)
        iterations = calibrate(warm.seconds_per_iteration, 0.05)
        stopping = Stopping(min_samples=10, min_s=0.5, target_spread=1.0, max_s=10.0)
        torch_timer = TorchTimer("step()", globals={"step": stepper.step}, num_threads=torch.get_num_threads())
        ours: list[float] = []
        theirs: list[float] = []
        for index in range(rounds):
            for side in ("ours", "theirs") if index % 2 else ("theirs", "ours"):
                if side == "ours":
                    taken = sample(stepper.step, timer, iterations=iterations, stopping=stopping)
                    ours.append(statistics.median(taken.seconds))
                else:
                    theirs.append(torch_timer.blocked_autorange(min_run_time=0.5).median)
        ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
        print(
            f"{name} {mode}: gpubench {statistics.median(ours) * 1e3:.3f} ms, torch.utils.benchmark "
            f"{statistics.median(theirs) * 1e3:.3f} ms, median ratio {ratio:.4f} ({rounds} rounds; goal within 2 %)"
        )


if __name__ == "__main__":
    main()
