"""How often gpubench is wrong about models that others wrote: its verdicts on the zoo against plain torch's.

    python benchmarks/zoo/run.py --install --output benchmarks/zoo/results.md

Each model runs in each of its modes through `gpubench compare-opts`, one value at a time, with a short protocol:
verdicts are asked for, not speeds. `judge.py` says with plain torch what each should be. What has been judged or
measured is kept in the work folder and not done again, unless asked. Exit code 1 if any verdict is false or any failure
unexplained.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from models import HERE, MODELS, NAMES, reference_of

ROOT = HERE.parents[1]
PRESET = HERE / "preset.toml"
COLUMNS = {
    "baseline": "baseline",
    "precision=bf16-autocast": "bf16-autocast",
    "precision=bf16-weights": "bf16-weights",
    "channels_last=on": "channels_last",
    "compile=default": "compile",
}
FALSE = {"not_effective": "false not_effective", "wrong": "false wrong", "ok": "false ok"}
UNEXPLAINED, UNCHECKED, BORDERLINE, RIGHT = "unexplained", "needlessly unchecked", "borderline", "right"
FAILING = (*FALSE.values(), UNEXPLAINED)
MODEL_LIMIT_S = 900


@dataclass(frozen=True)
class Cell:
    """One setting of one model: what gpubench said, what is right, and what follows."""

    said: str
    expected: list[str]
    finding: str
    why: str

    def __str__(self) -> str:
        if self.finding == RIGHT:
            return self.said
        if self.finding == BORDERLINE:
            return f"({self.said})"
        return f"**{self.said}**, not {' or '.join(self.expected) or 'a failure'}"


@dataclass(frozen=True)
class Line:
    """One model in one mode."""

    name: str
    mode: str
    cells: dict[str, Cell]
    seconds: float

    def __str__(self) -> str:
        cells = " | ".join(str(self.cells[column]) for column in COLUMNS)
        return f"| {self.name} | {self.mode} | {cells} | {self.seconds:.0f} |"


def run(command: list[str], log: Path, **environment: str) -> float:
    """Runs it to its end or to the limit, with its output in `log`; the seconds it took."""
    started = time.monotonic()
    with log.open("w") as stream:
        try:
            subprocess.run(
                command,
                cwd=ROOT,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                timeout=MODEL_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            stream.write(f"\nended after {MODEL_LIMIT_S} s\n")
    return time.monotonic() - started


def judged(name: str, work: Path, *, again: bool, backend: str) -> dict[str, Any]:
    """What the judge expects of a model, by mode; empty where the model cannot be judged."""
    kept, log = work / f"{_plain(name)}.judge.json", work / f"{_plain(name)}.judge.log"
    if again or not kept.exists():
        command = [sys.executable, str(HERE / "judge.py"), name, "--backend", backend, "--output", str(kept)]
        kept.unlink(missing_ok=True)
        run(command, log)
    if not kept.exists():
        print(f"{name}: the judge failed, see {log}", file=sys.stderr)
        return {}
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def measured(name: str, mode: str, work: Path, *, again: bool) -> tuple[dict[str, Any] | None, float]:
    """gpubench's report on a model in one mode, None where there is none; and the seconds that it took."""
    stem = f"{_plain(name)}.{mode}"
    report, log, timed = (work / f"{stem}.{end}" for end in ("json", "log", "seconds"))
    if again or not timed.exists():
        command = [sys.executable, "-m", "gpubench", "compare-opts", reference_of(name), "--mode", mode]
        command += ["--device", "cpu", "--preset", str(PRESET), "--final-rounds", "0", "--timeout", "5min"]
        command += [part for flag in ("contaminated", "unsteady", "swapped") for part in ("--allow", flag)]
        report.unlink(missing_ok=True)
        seconds = run([*command, "--output", str(report)], log, GPUBENCH_QUICK_PROTOCOL="1")
        timed.write_text(f"{seconds:.1f}\n")
    seconds = float(timed.read_text())
    return (json.loads(report.read_text()) if report.exists() else None), seconds


def said_of(report: dict[str, Any] | None) -> dict[str, tuple[str, str]]:
    """The verdict and its reason for each setting in the report."""
    if report is None:
        return dict.fromkeys(COLUMNS, ("no report", ""))
    rows = {row["id"]: row for row in report["measurements"]}
    baseline = rows.get(report["plan"]["baseline"])
    if baseline is None:
        return dict.fromkeys(COLUMNS, ("no baseline", ""))
    said = dict.fromkeys(COLUMNS, ("not tried", ""))
    said["baseline"] = _verdict(baseline), _reason(baseline)
    for row in rows.values():
        changed = {
            name: value for name, value in row["configuration"].items() if value != baseline["configuration"][name]
        }
        if len(changed) == 1:
            ((toggle, value),) = changed.items()
            if f"{toggle}={value}" in said:
                said[f"{toggle}={value}"] = _verdict(row), _reason(row)
    return said


def _verdict(row: dict[str, Any]) -> str:
    if row["status"] != "ok":
        return str(row["status"])
    quality = row.get("quality") or {}
    unchecked = quality.get("passed") is None or any(flag["kind"] == "quality_unchecked" for flag in row["flags"])
    return "unchecked" if unchecked else "ok"


def _reason(row: dict[str, Any]) -> str:
    quality = row.get("quality") or {}
    return str(row["reason"] or quality.get("reason") or "")


def finding_of(said: str, expected: list[str]) -> str:
    """What a verdict is, where `expected` ones are right; without any the setting is borderline."""
    if said in expected or (said == "not tried" and "skipped" in expected):
        return RIGHT
    if said == "unchecked":
        return BORDERLINE if not expected else UNCHECKED
    if said in FALSE:
        return FALSE[said] if expected else BORDERLINE
    return UNEXPLAINED


def line_of(name: str, mode: str, expected: dict[str, Any], report: dict[str, Any] | None, seconds: float) -> Line:
    """A model's line of the table."""
    cells = {}
    for column, (said, reason) in said_of(report).items():
        right = list(expected[column]["verdicts"])
        precision = _baseline_precision(report)
        if column == "baseline" and right == ["not_effective"] and precision not in (None, "fp32"):
            right = ["ok", "unchecked"]  # it has a name of its own, so that it claims no fp32
        cells[column] = Cell(said, right, finding_of(said, right), f"said: {reason}; judge: {expected[column]['why']}")
    return Line(name, mode, cells, seconds)


def _baseline_precision(report: dict[str, Any] | None) -> str | None:
    rows = [] if report is None else report["measurements"]
    baseline = next((row for row in rows if report and row["id"] == report["plan"]["baseline"]), None)
    return None if baseline is None else baseline["configuration"].get("precision")


def table(lines: list[Line]) -> str:
    """The results as Markdown."""
    counts = collections.Counter(cell.finding for line in lines for cell in line.cells.values())
    models = {line.name for line in lines}
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", *_LIBRARIES))
    seconds = sum(line.seconds for line in lines)
    text = [
        "# The zoo: gpubench's verdicts against plain torch's",
        "",
        "Made by `python benchmarks/zoo/run.py`; see [README.md](README.md) for what the columns hold.",
        "",
        f"{len(models)} models of {len({name.partition('/')[0] for name in models})} libraries, {len(lines)} runs, "
        f"{counts.total()} verdicts, {seconds / 60:.0f} minutes of gpubench on {os.cpu_count()} cores. {versions}.",
        "",
        "| finding | verdicts |",
        "| --- | ---: |",
        *(f"| {finding} | {counts[finding]} |" for finding in (*FAILING, UNCHECKED, BORDERLINE, RIGHT)),
        "",
        f"| model | mode | {' | '.join(COLUMNS.values())} | s |",
        f"| --- | --- | {'--- | ' * len(COLUMNS)}---: |",
        *(str(line) for line in lines),
    ]
    notes = [
        f"* {line.name}, {line.mode}, {column}: {cell.finding}. {cell.why}".replace("\n", " ")
        for line in lines
        for column, cell in line.cells.items()
        if cell.finding in (*FAILING, UNCHECKED)
    ]
    return "\n".join([*text, *(["", "What is not right, and why:", "", *notes] if notes else []), ""])


_LIBRARIES = tuple(library for library in MODELS if library not in ("torch", "torchvision"))


def _plain(name: str) -> str:
    return name.replace("/", "-")


def _chosen(patterns: list[str]) -> list[str]:
    chosen = [
        name for name in NAMES if not patterns or any(name == each or name.startswith(f"{each}/") for each in patterns)
    ]
    known = {*NAMES, *MODELS}
    for unknown in [pattern for pattern in patterns if pattern not in known]:
        sys.exit(
            f"There is no model or library {unknown!r} in the zoo. It has: {', '.join(MODELS)}; {', '.join(NAMES)}."
        )
    return chosen


def main() -> None:
    """Judges, measures and compares; prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models (timm/vit) or libraries (timm); default: all")
    parser.add_argument("--install", action="store_true", help="first install the libraries' pinned versions")
    parser.add_argument("--work", type=Path, default=ROOT / "gpubench-runs" / "zoo", help="where results are kept")
    parser.add_argument("--again", action="store_true", help="measure again what is kept; judgements are kept")
    parser.add_argument("--judge-again", action="store_true", help="judge again what is kept")
    parser.add_argument("--judge-only", action="store_true", help="judge, and measure nothing")
    parser.add_argument(
        "--backend", default="inductor", help="the judge's for compile: eager is quicker, checks no numbers"
    )
    parser.add_argument("--time-limit", type=float, metavar="MINUTES", help="begin no further model after that")
    parser.add_argument("--output", type=Path, help="write the table there too")
    given = parser.parse_args()
    if given.install:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, "-r", str(HERE / "requirements.txt")], check=True)
    given.work.mkdir(parents=True, exist_ok=True)
    work, started, lines, unjudged = given.work.resolve(), time.monotonic(), list[Line](), list[str]()
    for name in _chosen(given.names):
        if given.time_limit is not None and time.monotonic() - started > 60 * given.time_limit:
            print(f"The time limit ended the run before {name}; the same command goes on from there.", file=sys.stderr)
            break
        begun = time.monotonic()
        expected = judged(name, work, again=given.judge_again, backend=given.backend)
        unjudged += [] if expected else [name]
        for mode, settings in expected.items():
            if given.judge_only:
                words = "; ".join(
                    f"{column}: {' or '.join(e['verdicts']) or e['why']}" for column, e in settings.items()
                )
                print(f"{name} {mode}: {words}", flush=True)
                continue
            report, seconds = measured(name, mode, work, again=given.again)
            lines.append(line_of(name, mode, settings, report, seconds))
            found = collections.Counter(cell.finding for cell in lines[-1].cells.values())
            print(f"{name} {mode}: {dict(found)}", file=sys.stderr, flush=True)
        print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    if lines:
        text = table(lines)
        print(text)
        if given.output:
            given.output.write_text(text)
    false = any(cell.finding in FAILING for line in lines for cell in line.cells.values())
    sys.exit(1 if false or unjudged else 0)


if __name__ == "__main__":
    main()
