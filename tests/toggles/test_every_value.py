"""Every value of every toggle on every bundled workload: its row is right and proven, or says why it cannot run here.

The rows of one workload and mode are one run. `make test` runs a sample: each value on one workload.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

import gpubench
from gpubench.report.model import Measurement, Value
from gpubench.toggles import bundled_toggles
from gpubench.toggles.toggle import Toggle
from gpubench.workloads.catalog import SUMMARIES, TOGGLES
from gpubench.workloads.loader import load
from gpubench.workloads.workload_facts import Mode

CASES: list[tuple[str, Mode]] = [(name, mode) for name in SUMMARIES for mode in ("inference", "training")]  # type: ignore[misc]
DISTURBED = ["contaminated", "unsteady", "swapped"]  # by other tests
# What a row may come to that is neither right nor skipped, since the model is so: (toggle, value, workload) -> why.
EXCEPTIONS: dict[tuple[str, Value, str], str] = {}


def values(toggle: Toggle) -> list[Value]:
    """What is tried of a toggle without compiling: that takes half a minute a row, and has a test of its own."""
    needs = toggle.prerequisites
    compiled = {value for value in toggle.values if value in toggle.compiles or "compile" in needs.get(value, {})}
    return [value for value in [*toggle.values][1:] if value not in compiled] if toggle.name != "compile" else []


def asked(workload: str) -> dict[str, list[Value]]:
    """All that there is to try on a workload: bundled toggles and its own."""
    own = {each.name: each for each in load(workload, "tiny").workload.toggles}
    toggles = {**bundled_toggles(), **{name: own[name] for name in TOGGLES.get(workload, ())}}
    return {name: found for name, toggle in toggles.items() if (found := values(toggle))}


def run(workload: str, mode: Mode, wanted: Mapping[str, list[Value]], **more: Any) -> list[Measurement]:
    report = gpubench.compare(
        workload, mode=mode, size="tiny", set=wanted, strategy="each", final_rounds=0, allow=DISTURBED, **more
    )
    return [row for row in report.measurements if row.id != "baseline"]


def check(rows: list[Measurement], workload: str) -> None:
    wrong = []
    for row in rows:
        (toggle,) = [role.toggle for role in row.roles if role.kind == "alone"]
        assert toggle is not None
        value = row.configuration.get(toggle, "")
        if row.status == "skipped":
            fine = row.reason.endswith(".") and len(row.reason) > 20
        else:
            effect = [each.took_effect for each in row.evidence if each.toggle == toggle]
            fine = row.status == "ok" and effect == [True]
        if not fine and (toggle, value, workload) not in EXCEPTIONS:
            said = [each.detail for each in row.evidence if each.toggle == toggle]
            wrong.append(f"{row.id}: {row.status}: {row.reason} {said}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("workload", "mode"), CASES)
def test_every_value_is_right_and_proven_or_says_why_not(workload: str, mode: Mode) -> None:
    check(run(workload, mode, asked(workload)), workload)
