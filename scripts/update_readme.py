"""Puts the committed reports under results/ into the README, between its markers; `--check` only tells if they differ.

A new report counts once `git add` knows it, so that what somebody measures here never changes the README.

python scripts/update_readme.py [--check]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gpubench.render.formats import render
from gpubench.render.report_document import reports_content
from gpubench.report.model import Report
from gpubench.report.store import load

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- results:begin -->\n", "<!-- results:end -->\n"
SHOWN = "resnet50-inference.json"  # the report whose whole table is shown


def committed(root: Path = ROOT) -> list[Path]:
    """The reports under results/ that git tracks; all of them where `root` is no checkout, as in an archive."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--", "results"]
    if not (root / ".git").exists():
        return sorted((root / "results").glob("*/*.json"))
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted(root / name for name in listed if name.endswith(".json") and (root / name).exists())


def summary(reports: dict[Path, Report]) -> str:
    """One line for each report: what is recommended, and the speed-up with its interval."""
    lines = [
        "| device | workload | recommended for FPS | speed-up (95 %) | report |",
        "| --- | --- | --- | --- | --- |",
    ]
    for path, report in reports.items():
        found = report.recommendation
        if report.plan.command != "compare-opts" or found is None:
            continue
        gain = "-"
        if found.speedup is not None and found.speedup_low is not None and found.speedup_high is not None:
            gain = f"{found.speedup:.2f}x ({found.speedup_low:.2f} to {found.speedup_high:.2f})"
        name = f"{report.workload.name} {report.workload.mode}, {report.workload.size}"
        file = path.relative_to(ROOT).as_posix()
        lines.append(f"| {report.device.name} | {name} | {found.id.replace(',', ', ')} | {gain} | [json]({file}) |")
    return "\n".join(lines)


def block() -> str:
    """The text between the markers."""
    reports = {path: load(path) for path in committed()}
    shown = next(path for path in reports if path.name == SHOWN)
    table = (
        render(reports_content([reports[shown]], lambda *_: ""), "markdown")
        .replace("\n## ", "\n### ")
        .removeprefix("## ")
    )
    title, _, rest = table.partition("\n")
    name = shown.relative_to(ROOT).as_posix()
    return (
        f"This is a real run of `gpubench compare-opts resnet50` ([{name}]({name})):\n\n"
        f"**{title.strip()}**\n{rest.strip()}\n\n"
        f"And what the real reports under `results/` recommend:\n\n{summary(reports)}\n"
    )


def main() -> int:
    """Writes the README, or compares; the exit code."""
    path = ROOT / "README.md"
    text = path.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = f"{before}{BEGIN}{block()}{END}{after}"
    if "--check" in sys.argv:
        return 0 if wanted == text else 1
    path.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
