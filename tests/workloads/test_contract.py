"""What holds for every bundled workload in every mode: its rows are right, or say in a sentence why they cannot be.

Compiled rows take inductor half a minute each, so `make test-compiled` runs them and nothing else does.
"""

from __future__ import annotations

from typing import Any

import pytest

import gpubench
from gpubench.workloads.catalog import SUMMARIES
from gpubench.workloads.loader import load

EAGER = {"precision": ["bf16-autocast"], "channels_last": ["on"]}
MODES = ("inference", "training")
CASES = [(name, mode) for name in SUMMARIES for mode in load(name, "tiny").workload.modes]


def test_every_workload_has_both_modes() -> None:
    assert [(name, mode) for name in SUMMARIES for mode in MODES] == CASES


def check_rows(name: str, mode: Any, asked: dict[str, list[str]]) -> None:
    report = gpubench.compare(
        name,
        mode=mode,
        size="tiny",
        set=asked,
        strategy="each",
        final_rounds=0,
        allow=["contaminated", "unsteady", "swapped"],
    )
    rows = {row.id: row for row in report.measurements}
    assert set(rows) == {"baseline", *(f"{toggle}={value}" for toggle, (value,) in asked.items())}
    for row in rows.values():
        assert row.status in ("ok", "skipped"), row
        assert row.quality is not None or row.status == "skipped"
    skipped = {row.id: row.reason for row in rows.values() if row.status == "skipped"}
    assert skipped.keys() <= {"channels_last=on", "precision=bf16-autocast"}  # no convolutions; no bf16 instructions
    assert all(reason.endswith(".") and len(reason) > 20 for reason in skipped.values())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_eager_rows_of_a_workload(name: str, mode: str) -> None:
    check_rows(name, mode, EAGER)


@pytest.mark.compiled
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_the_compiled_row_of_a_workload(name: str, mode: str) -> None:
    check_rows(name, mode, {"compile": ["default"]})
