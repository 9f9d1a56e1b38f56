"""How fast the ways to scan are against the Python loop: forward and backward, in turns, by ratio.

    python benchmarks/scan.py [SECONDS] [BATCH LENGTH CHANNELS]

The default shape is that of recurrent_lm's "small". What is shown is the median over rounds of a round's ratio.
With one thread (OMP_NUM_THREADS=1) the processor's time is taken, so that a busy machine may be used.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from gpubench.errors import GpubenchError
from gpubench.workloads import scans


def seconds(way: str, tensors: list[torch.Tensor], backward: bool) -> float:
    """Of one call, the quickest of three."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken = []
    for _ in range(3):
        started = clock()
        with torch.set_grad_enabled(backward):
            h = scans.scan(way, *tensors)
        if backward:
            torch.autograd.grad(h, tensors, torch.ones_like(h))
        taken.append(clock() - started)
    return min(taken)


def main() -> None:
    """Prints a line for each way, of the forward pass alone and with the backward pass."""
    limit = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    batch, length, channels = (int(size) for size in sys.argv[2:5]) if len(sys.argv) > 4 else (1, 128, 1024)
    ways = []
    for way in scans.WAYS:
        try:
            scans.prepare(way)
            ways.append(way)
        except GpubenchError as error:
            print(f"{way}: left out. {error}")
    torch.manual_seed(0)
    tensors = [torch.rand(batch, length, channels), torch.randn(batch, length, channels), torch.zeros(batch, channels)]
    leaves = [tensor.requires_grad_() for tensor in tensors]
    print(f"[{batch}, {length}, {channels}], fp32, {torch.get_num_threads()} threads")
    for backward in (False, True):
        rounds: list[dict[str, float]] = []
        until = time.monotonic() + limit / 2
        while time.monotonic() < until or len(rounds) < 3:
            order = ways if len(rounds) % 2 else ways[::-1]
            rounds.append({way: seconds(way, leaves, backward) for way in order})
        for way in ways:
            ratio = statistics.median(each["loop"] / each[way] for each in rounds[1:])
            median = statistics.median(each[way] for each in rounds[1:])
            what = "forward and backward" if backward else "forward"
            print(f"{what}: {way} {median * 1e3:.3f} ms, {ratio:.2f}x the loop ({len(rounds) - 1} rounds)")


if __name__ == "__main__":
    main()
