"""How long commands that read reports take to start. Goal: <= 0.4 s each, without importing torch.

python benchmarks/startup.py REPORT.json [ROUNDS]

Beside them `check` on that report, and on one of 1,000 rows made of it (goal: <= 1 s).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Prints the median and the worst of each command."""
    report = sys.argv[1]
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    with tempfile.TemporaryDirectory() as folder:
        large = f"{folder}/1000-rows.json"
        many_rows(report, large)
        for arguments in (
            ["--help"], ["recommend", report], ["report", report], ["schema"], ["toggles"], ["workloads"],
            ["check", report, "--baseline", report], ["check", large, "--baseline", large],
        ):  # fmt: skip
            times = []
            for _ in range(rounds):
                started = time.perf_counter()
                command = [sys.executable, "-m", "gpubench", *arguments]
                code = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
                if code != 0 and (arguments[0], code) != ("check", 4):
                    raise SystemExit(f"{' '.join(command)} ended with {code}")
                times.append(time.perf_counter() - started)
            name = "check of 1,000 rows" if large in arguments else arguments[0]
            print(f"gpubench {name}: median {statistics.median(times):.3f} s, worst {max(times):.3f} s of {rounds}")


def many_rows(report: str, path: str) -> None:
    """A report of 1,000 rows: the rows of `report` in turn, each with a setting of its own."""
    document = json.loads(Path(report).read_text())
    rows = [row for row in document["measurements"] if row["status"] == "ok"]
    grid = [{"kind": "grid"}]
    first = document["measurements"][0]
    document["measurements"] = [first] + [
        {**rows[index % len(rows)], "id": f"row-{index}", "configuration": {"number": index}, "roles": grid}
        for index in range(999)
    ]
    document["recommendation"] = None
    Path(path).write_text(json.dumps(document))


if __name__ == "__main__":
    main()
