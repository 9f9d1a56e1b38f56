from __future__ import annotations

from gpubench.analysis.knee import knee
from gpubench.report.model import Measurement
from tests.reports import baseline, report, row, sweep


def size(
    value: int, fps: float | None, status: str = "ok", toggle: str = "batch_size", **options: object
) -> Measurement:
    step = value / fps if fps else None
    return row(
        f"{toggle}-{value}-{options.get('tag', '')}",
        step,
        {toggle: value},
        items=max(value, 1),
        roles=[sweep(toggle)],
        status=status,
        **{key: each for key, each in options.items() if key != "tag"},
    )


def test_the_knee_is_the_smallest_value_within_five_percent_of_the_best() -> None:
    found = knee(report(size(1, 50), size(2, 90), size(4, 96), size(8, 100), size(16, 99)), "batch_size")
    assert (found.knee, found.largest_fitting) == (4, 16)
    assert "96.0 against 100 at 8" in found.reason


def test_exactly_five_percent_below_counts() -> None:
    assert knee(report(size(1, 95), size(2, 100)), "batch_size").knee == 1
    assert knee(report(size(1, 94.9), size(2, 100)), "batch_size").knee == 2


def test_values_are_ordered_as_numbers_however_they_were_measured() -> None:
    found = knee(report(size(16, 100), size(2, 99), size(8, 50)), "batch_size")
    assert (found.knee, found.largest_fitting) == (2, 16)


def test_what_does_not_fit_is_named_above_and_between() -> None:
    rows = [size(4, None, "oom"), size(8, 100), size(2, 60), size(16, None, "oom"), size(32, None, "crashed")]
    found = knee(report(*rows), "batch_size")
    assert (found.knee, found.largest_fitting) == (8, 8)
    assert "above it failed: 16 (oom), 32 (crashed)" in found.reason
    assert "Below it failed: 4 (oom), although larger ones ran" in found.reason


def test_nothing_valid_has_no_knee() -> None:
    found = knee(report(size(1, None, "oom"), size(2, None, "timeout")), "batch_size")
    assert (found.knee, found.largest_fitting) == (None, None)
    assert "2 rows: oom, timeout" in found.reason
    assert knee(report(), "batch_size").knee is None


def test_a_wrong_or_unsteady_row_is_no_best() -> None:
    rows = [size(1, 50), size(2, 500, passed=False), size(4, 900, flags=["unsteady"]), size(8, 51)]
    assert knee(report(*rows), "batch_size").knee == 1


def test_rows_without_the_toggle_do_not_count() -> None:
    assert knee(report(baseline(), size(2, 60)), "batch_size").knee == 2


def test_the_whole_picture_is_the_largest_tile_and_the_best_overlap_stands_for_a_size() -> None:
    def tile(value: int, fps: float | None, overlap: int, status: str = "ok") -> Measurement:
        return size(value, fps, status, "tile_size", tag=str(overlap))

    rows = [tile(0, 100, 0), tile(256, 60, 32), tile(256, 97, 64), tile(512, None, 32, "oom"), tile(512, 98, 64)]
    found = knee(report(*rows), "tile_size")
    assert (found.knee, found.largest_fitting) == (256, 0)
