"""How long commands that read reports take to start. Goal: <= 0.4 s each, without importing torch.

python benchmarks/startup.py REPORT.json [ROUNDS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def main() -> None:
    """Prints the median and the worst of each command."""
    report = sys.argv[1]
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    for arguments in (["--help"], ["recommend", report], ["report", report], ["schema"], ["toggles"], ["workloads"]):
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "gpubench", *arguments], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - started)
        print(f"gpubench {arguments[0]}: median {statistics.median(times):.3f} s, worst {max(times):.3f} s of {rounds}")


if __name__ == "__main__":
    main()
