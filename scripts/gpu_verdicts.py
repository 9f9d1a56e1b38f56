"""One line on each part of the GPU acceptance, from what the part wrote. Needs nothing but Python.

    python scripts/gpu_verdicts.py FOLDER PART EXIT_CODE SECONDS

`ok`, `FAILED` (with why), `STOPPED` (at its time limit, with what there was) or `NOTHING` (it wrote nothing that could
be judged, whatever its exit code). The exit code is 1 unless the part is ok.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

STOPPED_CODES = (124, 130, 137)  # timeout(1): its signal ended it; SIGINT; SIGKILL
AGREEMENT = 0.01  # the goal of benchmarks/agreement.py
Judged = tuple[bool, str]  # whether it is as it should be, and what to say


class NothingThere(Exception):
    """The part left nothing to judge."""


def lines(path: Path) -> list[str]:
    """The lines of a file that are not empty; none where it is missing."""
    return [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.exists() else []


def records(paths: list[Path]) -> list[dict[str, Any]]:
    """The JSON lines of files; one that was cut off is left out."""
    found = []
    for line in (line for path in paths for line in lines(path)):
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    if not found:
        raise NothingThere
    return found


def document(path: Path) -> Any:
    """A JSON file."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise NothingThere from error


def facts(folder: Path, part: str) -> Judged:
    """Versions, and what the driver said once there was a context."""
    found = document(folder / f"{part}.json")
    context = found.get("with_context", {}).get("value", "not reached")
    torch = found["versions"]["value"].get("torch")
    if not isinstance(context, dict):
        return False, f"torch {torch}; with a context on the device: {context}"
    activity = "moves" if len(context.get("activity", [])) > 1 else f"unavailable {context.get('activity')}"
    return "processes" in context, f"torch {torch}; own pid listed: {context.get('own_pid_listed')}; GPM {activity}"


def doctor(folder: Path, part: str) -> Judged:
    """Its findings; problems are named."""
    findings = document(folder / f"{part}.out").get("findings", [])
    problems = [f"{each['subject']}: {each['found']}" for each in findings if each["severity"] == "problem"]
    return not problems, "; ".join([f"{len(findings)} findings, {len(problems)} problems", *problems])


def corpus(folder: Path, part: str) -> Judged:
    """How many configurations ran, which evidence denies what was set, and how the profiler counts."""
    found = records(sorted(folder.glob(f"{part}-*.jsonl")))
    rows = [each for each in found if "configuration" in each]
    failed = [each for each in rows if "problem" in each]
    ran = [each for each in rows if "problem" not in each]
    denied = [
        f"{each['model']} {each['configuration'][toggle]} ({'denied' if proof[0] is False else 'unknown'}: {proof[1]})"
        for each in ran
        for toggle, proof in each["evidence"].items()
        if proof[0] is not True
    ]
    lost = sum(
        each[name]["kernels"] < each[name]["launches"] and not each[name]["graph_launches"]
        for each in ran
        for name in each
        if name.startswith("profiled_after_")
    )
    worst = max(ran, key=lambda each: each["relative_error"], default=None)
    planned = sum(each.get("planned", 0) for each in found)
    said = [f"{len(ran)} of {planned} configurations ran", f"{lost} profiles lost kernels"]
    if worst:
        said.append(f"largest error {worst['relative_error']:.1e} ({worst['model']} {worst['configuration']})")
    said += [f"problem in {each['model']} {each['configuration']}: {each['problem'][:200]}" for each in failed[:3]]
    said += [f"evidence: {text[:300]}" for text in denied[:5]]
    return 0 < len(ran) == planned and not denied, "; ".join(said)


def tests(folder: Path, part: str) -> Judged:
    """The counts of pytest, and the names of what failed."""
    try:
        cases = list(ElementTree.parse(folder / f"{part}.xml").getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError) as error:
        raise NothingThere from error
    outcomes = {f"{case.get('classname')}::{case.get('name')}": {child.tag for child in case} for case in cases}
    if not outcomes:
        raise NothingThere
    failed = [name.rpartition(".")[2] for name, tags in outcomes.items() if tags & {"failure", "error"}]
    skipped = sum("skipped" in tags for tags in outcomes.values())
    passed = len(outcomes) - len(failed) - skipped
    words = f"{passed} passed, {len(failed)} failed, {skipped} skipped"
    return passed > 0 and not failed, "; ".join([words, *failed[:20]])


def report(folder: Path, part: str) -> Judged:
    """The rows of a report by status, what is not ok, and what is recommended."""
    found = document(folder / f"{part}.json")
    rows = found["measurements"]
    statuses = Counter(row["status"] for row in rows)
    invalid = [row for row in rows if row["status"] not in ("ok", "skipped")]
    wrong = [f"{row['id']} is {row['status']}: {row['reason']}" for row in invalid]
    flags = Counter(flag["kind"] for row in rows for flag in row["flags"])
    advice, sweep = found.get("recommendation"), found.get("sweep")
    said = [", ".join(f"{count} {status}" for status, count in statuses.items()) or "no rows"]
    if advice:
        times = f" {advice['speedup']:.2f}x" if advice.get("speedup") else ""
        said.append(f"recommended {advice['id']}{times}")
    elif sweep:
        said.append(f"knee {sweep['knee']}, largest that fits {sweep['largest_fitting']}")
    else:
        said.append("nothing recommended")
    if flags:
        said.append("flags " + ", ".join(f"{kind} {count}" for kind, count in flags.items()))
    finished = "" if found.get("finished_at") else "unfinished; "
    # An OOM is what a limit is for, and `sweep` says what fits.
    bad = [text for text in wrong if not (sweep and " is oom: " in text)]
    fine = bool(finished == "" and statuses["ok"] and (advice or sweep) and not bad)
    return fine, finished + "; ".join([*said, *(text[:200] for text in wrong[:6])])


def agreement(folder: Path, part: str) -> Judged:
    """The ratios to the other tool."""
    found = [line for line in lines(folder / f"{part}.out") if "median ratio" in line]
    if not found:
        raise NothingThere
    ratios = [float(line.split("median ratio ")[1].split()[0]) for line in found]
    fine = all(abs(ratio - 1) <= AGREEMENT for ratio in ratios)
    return fine, "; ".join(line.split(" (")[0] for line in found)


def ab(folder: Path, part: str) -> Judged:
    """The verdict on two equal sides."""
    verdicts = [each["verdict"] for each in document(folder / f"{part}.out")]
    if not verdicts:
        raise NothingThere
    return set(verdicts) <= {"unchanged", "inconclusive"}, f"verdict {', '.join(verdicts)} on two equal sides"


def pool(folder: Path, part: str) -> Judged:
    """How many rounds of equal sides were collected."""
    found = document(folder / f"{part}.json")
    rounds = len(found.get("rounds", found) if isinstance(found, dict) else found)
    return rounds > 0, f"{rounds} rounds of equal sides"


# By the beginning of the part's name; the longest that fits.
JUDGES: dict[str, Callable[[Path, str], Judged]] = {
    "facts": facts, "doctor": doctor, "corpus": corpus, "tests": tests, "compare": report, "sweep": report,
    "final": report, "max-autotune": report, "agreement": agreement, "ab": ab, "calibration": pool,
}  # fmt: skip


def verdict(folder: Path, part: str, code: int, seconds: float) -> tuple[bool, str]:
    """Whether the part is ok, and its line."""
    judge = JUDGES[max((name for name in JUDGES if part.startswith(name)), key=len)]
    last = (lines(folder / f"{part}.log") or lines(folder / f"{part}.out") or ["no output"])[-1].strip()
    stopped = code in STOPPED_CODES
    try:
        fine, words = judge(folder, part)
    except NothingThere:
        how = "stopped at its limit" if stopped else f"exit code {code}"
        return False, f"NOTHING {part}: {how} after {seconds:g} s and left nothing to judge; last line: {last[:300]}"
    except Exception as error:  # noqa: BLE001 - a verdict that fails is no verdict
        return False, f"NOTHING {part}: what it left cannot be read: {type(error).__name__}: {error}"
    if stopped:
        return False, f"STOPPED {part} after {seconds:g} s: {words}"
    word = "ok" if fine and code == 0 else "FAILED"
    why = f" (exit code {code}, last line: {last[:300]})" if code else ""
    return word == "ok", f"{word} {part} in {seconds:g} s: {words}{why}"


def main(arguments: list[str]) -> int:
    """Prints the line."""
    folder, part, code, seconds = arguments
    fine, line = verdict(Path(folder), part, int(code), float(seconds))
    print(line, flush=True)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
