"""What holds for every bundled workload in every mode: its rows are right, or say in a sentence why they cannot be."""

from __future__ import annotations

from typing import Any

import pytest

import gpubench
from gpubench.workloads.catalog import SUMMARIES
from gpubench.workloads.loader import load

ASKED = {"precision": ["bf16-autocast"], "channels_last": ["on"], "compile": ["default"]}
MODES = ("inference", "training")
CASES = [(name, mode) for name in SUMMARIES for mode in load(name, "tiny").workload.modes]


def test_every_workload_has_both_modes() -> None:
    assert [(name, mode) for name in SUMMARIES for mode in MODES] == CASES


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_rows_of_a_workload(name: str, mode: Any) -> None:
    report = gpubench.compare(
        name,
        mode=mode,
        size="tiny",
        set=ASKED,
        strategy="each",
        final_rounds=0,
        allow=["contaminated", "unsteady", "swapped"],
    )
    rows = {row.id: row for row in report.measurements}
    assert set(rows) == {"baseline", *(f"{toggle}={value}" for toggle, (value,) in ASKED.items())}
    for row in rows.values():
        assert row.status == "ok" or (row.status == "skipped" and row.reason.endswith((".", "convolution"))), row
        assert row.status == "skipped" or row.quality is not None
    assert {row.id for row in rows.values() if row.status == "skipped"} <= {"channels_last=on"}
