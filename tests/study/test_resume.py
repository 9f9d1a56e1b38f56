"""What must be alike to resume a report: each difference is named."""

from pathlib import Path

import msgspec
import pytest

from gpubench.errors import GpubenchError
from gpubench.report import store
from gpubench.study.destination import begin, differences, refuse_unlike
from gpubench.study.listener import Listener
from tests.reports import report

REPORT = report()


def test_the_same_report_is_alike() -> None:
    assert differences(REPORT, REPORT) == []
    refuse_unlike(REPORT, REPORT, Path("report.json"))


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("device", "name", "NVIDIA H100"),
        ("device", "driver_version", "999"),
        ("environment", "torch", "9.9"),
        ("workload", "parameters", {"task": "decode"}),
        ("workload", "source_hash", "0" * 64),
        ("protocol", "seed", 5),
        ("tool", "version", "9"),
        ("plan", "baseline", "precision=tf32"),
    ],
)
def test_a_difference_is_named_and_refused(part: str, field: str, value: object) -> None:
    other = msgspec.structs.replace(REPORT, **{part: msgspec.structs.replace(getattr(REPORT, part), **{field: value})})
    found = differences(REPORT, other)
    assert len(found) == 1
    assert found[0].startswith(f"{part}.{field}")
    with pytest.raises(GpubenchError, match=rf"Cannot resume report\.json: it differs in {part}\.{field}.*: .* now\."):
        refuse_unlike(REPORT, other, Path("report.json"))


def test_what_changes_by_itself_does_not_matter() -> None:
    other = msgspec.structs.replace(
        REPORT, device=msgspec.structs.replace(REPORT.device, unavailable={"power_limit_watts": "no permission"})
    )
    assert differences(REPORT, other) == []


def test_a_report_is_there_from_its_beginning_so_that_no_other_run_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    begun = msgspec.structs.replace(REPORT, finished_at=None)
    begin(begun, path, False, Listener())
    assert store.load(path) == begun
    with pytest.raises(GpubenchError, match="holds an unfinished run"):
        begin(begun, path, False, Listener())
    assert begin(begun, path, True, Listener()) == begun
