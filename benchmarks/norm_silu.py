"""How fast the fused GroupNorm and SiLU is against torch's two operators: forward and backward, in turns, by ratio.

    python benchmarks/norm_silu.py [SECONDS] [BATCH CHANNELS SIDE GROUPS]

The default shape is that of the last level of vae's "base" at half its side. What is shown is the median over rounds of
a round's ratio. With one thread (OMP_NUM_THREADS=1) the processor's time is taken, so that a busy machine may be used.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from torch import nn

from gpubench.workloads.norms import native, norm_silu

WAYS = ("torch", "fused")


def seconds(way: str, norm: nn.GroupNorm, x: torch.Tensor, backward: bool) -> float:
    """Of one call, the quickest of three."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken = []
    for _ in range(3):
        started = clock()
        with torch.set_grad_enabled(backward):
            y = norm_silu(norm, x, way)
        if backward:
            torch.autograd.grad(y, [x, *norm.parameters()], torch.ones_like(y))
        taken.append(clock() - started)
    return min(taken)


def main() -> None:
    """Prints a line for each dtype, layout and pass."""
    limit = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    sizes = [int(size) for size in sys.argv[2:6]] if len(sys.argv) > 5 else [1, 128, 256, 32]
    batch, channels, side, groups = sizes
    native.prepare()
    torch.manual_seed(0)
    print(f"[{batch}, {channels}, {side}, {side}], {groups} groups, {torch.get_num_threads()} threads")
    cases = [
        (dtype, layout, backward)
        for dtype in (torch.float32, torch.bfloat16)
        for layout in (torch.contiguous_format, torch.channels_last)
        for backward in (False, True)
    ]
    for dtype, layout, backward in cases:
        norm = nn.GroupNorm(groups, channels).to(dtype)
        x = torch.randn(batch, channels, side, side).to(dtype).contiguous(memory_format=layout).requires_grad_()
        rounds: list[dict[str, float]] = []
        until = time.monotonic() + limit / len(cases)
        while time.monotonic() < until or len(rounds) < 4:
            order = WAYS if len(rounds) % 2 else WAYS[::-1]
            rounds.append({way: seconds(way, norm, x, backward) for way in order})
        ratio = statistics.median(each["torch"] / each["fused"] for each in rounds[1:])
        torchs, ours = (statistics.median(each[way] for each in rounds[1:]) for way in WAYS)
        what = "forward and backward" if backward else "forward"
        print(
            f"{str(dtype)[6:]}, {str(layout)[6:]}, {what}: torch {torchs * 1e3:.2f} ms, fused {ours * 1e3:.2f} ms, "
            f"{ratio:.2f}x ({len(rounds) - 1} rounds)"
        )


if __name__ == "__main__":
    main()
