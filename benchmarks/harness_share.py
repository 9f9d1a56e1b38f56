"""How long a default compare-opts takes, and which share of it is the harness. Goals: <= 300 s on 2 cores, <= 10 %.

Harness is everything but build, apply, first call (compile), warm-up and samples of the measured processes.

    python benchmarks/harness_share.py [WORKLOAD MODE]
    python benchmarks/harness_share.py REPORT.json...     (of runs made before)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def show(report: dict[str, Any], name: str) -> None:
    """Prints duration, harness share and its parts."""
    harness = report["harness"]
    total, measuring = harness["total"], harness["measuring"]
    parts = {key: value for key, value in harness.items() if key not in ("total", "measuring")}
    rows: dict[str, float] = {}
    for row in report["measurements"]:
        for phase, seconds in row["phases_s"].items():
            rows[phase] = rows.get(phase, 0.0) + seconds
    print(f"{name}: {total:.0f} s, harness {1 - measuring / total:.1%} ({total - measuring:.1f} s)")
    print(f"    outside the processes: {', '.join(f'{key} {value:.1f} s' for key, value in parts.items())}")
    print(f"    inside: {', '.join(f'{key} {value:.1f} s' for key, value in rows.items())}")


def main() -> None:
    """Runs compare-opts, or reads what it wrote."""
    arguments = sys.argv[1:]
    if arguments and arguments[0].endswith(".json"):
        for name in arguments:
            report = json.loads(Path(name).read_text())
            if report["finished_at"]:
                show(report, name)
        return
    workload, mode = arguments or ("resnet50", "inference")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.json")
        command = [sys.executable, "-m", "gpubench", "compare-opts", workload, "--mode", mode, "--output", str(path)]
        subprocess.run([*command, "--quiet"], check=True, stdout=subprocess.DEVNULL)
        show(json.loads(path.read_text()), f"{workload} {mode}")


if __name__ == "__main__":
    main()
