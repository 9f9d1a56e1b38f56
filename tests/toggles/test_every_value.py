"""Every value of every toggle on every bundled workload: its row is right and proven, or says why it cannot run here.

The rows of one workload and mode are one run. `make test` runs a sample: each value on one workload.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

import gpubench
from gpubench.hardware.facts import Device
from gpubench.report.model import Measurement, Value
from gpubench.study import launch
from gpubench.toggles import bundled_toggles
from gpubench.toggles.toggle import Scope, Toggle
from gpubench.workloads.catalog import SUMMARIES, TOGGLES
from gpubench.workloads.describe import describe
from gpubench.workloads.loader import load
from gpubench.workloads.workload_facts import Mode

CASES: list[tuple[str, Mode]] = [(name, mode) for name in SUMMARIES for mode in ("inference", "training")]  # type: ignore[misc]
OF_THE_ENVIRONMENT = "resnet50"
DISTURBED = ["contaminated", "unsteady", "swapped"]  # by other tests
# What a row of these tiny models may come to that is neither right nor skipped: (toggle, value, workload) -> why.
ONE_HEAD = "its attention has one head and one item, which no slice can be a part of"
TINY = "layers of these sizes cannot be packed, or lose more by 16 steps of a number than the limit allows"
EXCEPTIONS: dict[tuple[str, Value, str], str] = {
    **{("attention_slices", value, name): ONE_HEAD for value in (2, 4, 8) for name in ("vae", "video_vae")},
    **{("quantization", "int4-weight", name): TINY for name in SUMMARIES},
    ("quantization", "int8-dynamic", "resnet50"): TINY,
}


def is_rounded_away(row: Measurement, mode: Mode) -> bool:
    """Training with weights in bf16 alone is wrong, and is told so: updates are smaller than what bf16 can add."""
    updates = "of the parameters that should have moved did not" in row.reason
    return mode == "training" and row.status == "wrong" and updates and row.configuration["precision"] == "bf16-weights"


def values(toggle: Toggle) -> list[Value]:
    """What is tried of a toggle without compiling: that takes half a minute a row, and has a test of its own."""
    needs = toggle.prerequisites
    compiled = {value for value in toggle.values if value in toggle.compiles or "compile" in needs.get(value, {})}
    return [value for value in [*toggle.values][1:] if value not in compiled] if toggle.name != "compile" else []


def asked(workload: str) -> dict[str, list[Value]]:
    """All that there is to try on a workload: bundled toggles and its own.

    What is set before Python starts does not depend on the workload, and takes a server of its own: it is tried on one.
    """
    own = {each.name: each for each in load(workload, "tiny").workload.toggles}
    toggles = {**bundled_toggles(), **{name: own[name] for name in TOGGLES.get(workload, ())}}
    return {
        name: found
        for name, toggle in toggles.items()
        if (found := values(toggle)) and (toggle.environment is None or workload == OF_THE_ENVIRONMENT)
    }


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on the speed."""
    short = {"block_s": 0.002, "min_sampling_s": 0.01, "max_sampling_s": 0.03, "warmup_min_s": 0.0, "warmup_max_s": 0.1}
    monkeypatch.setattr(launch, "QUICK_PROTOCOL", launch.QUICK_PROTOCOL | short)


def run(workload: str, mode: Mode, wanted: Mapping[str, list[Value]], **more: Any) -> list[Measurement]:
    report = gpubench.compare(
        workload, mode=mode, size="tiny", set=wanted, strategy="each", final_rounds=0, allow=DISTURBED, **more
    )
    return [row for row in report.measurements if row.id != "baseline"]


def check(rows: list[Measurement], workload: str, mode: Mode) -> None:
    wrong = []
    for row in rows:
        (toggle,) = [role.toggle for role in row.roles if role.kind == "alone"]
        assert toggle is not None
        value = row.configuration.get(toggle, "")
        if row.status == "skipped":
            fine = row.reason.endswith(".") and len(row.reason) > 20
        else:
            effect = [each.took_effect for each in row.evidence if each.toggle == toggle]
            fine = (row.status == "ok" or is_rounded_away(row, mode)) and effect == [True]
        if not fine and (toggle, value, workload) not in EXCEPTIONS:
            said = [each.detail for each in row.evidence if each.toggle == toggle]
            wrong.append(f"{row.id}: {row.status}: {row.reason} {said}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.values
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("workload", "mode"), CASES)
def test_every_value_is_right_and_proven_or_says_why_not(workload: str, mode: Mode) -> None:
    check(run(workload, mode, asked(workload)), workload, mode)


# ----- a sample, for every run of the tests

SAMPLE: list[tuple[str, Mode]] = [("gpt", "training"), ("vae", "inference")]


def first_cases() -> dict[str, tuple[str, Mode]]:
    """Toggle -> the first of SAMPLE that it applies to; what is set before Python starts has tests of its own."""
    device, found = Device(kind="cpu", name="A CPU", cores=2, physical_cores=2), dict[str, tuple[str, Mode]]()
    for name, mode in SAMPLE:
        scope = Scope(device=device, workload=describe(load(name, "tiny"), mode), torch_version=(2, 13))
        for toggle in bundled_toggles().values():
            if toggle.environment is None and values(toggle) and toggle.applies(scope) is None:
                found.setdefault(toggle.name, (name, mode))
    return found


@pytest.mark.parametrize(("workload", "mode"), SAMPLE)
def test_each_value_is_right_and_proven_on_a_workload(workload: str, mode: Mode) -> None:
    mine = {name for name, case in first_cases().items() if case == (workload, mode)}
    assert mine
    check(run(workload, mode, {name: found for name, found in asked(workload).items() if name in mine}), workload, mode)
