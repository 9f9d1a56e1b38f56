"""The engine of rounds and the book it writes to, with scripted processes: when rounds end, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path

import msgspec
import pytest

from gpubench.cli.progress import Quiet
from gpubench.errors import GpubenchError
from gpubench.executor.executor import Job
from gpubench.executor.outcome import Outcome
from gpubench.regression.verdicts import Limits
from gpubench.report import store
from gpubench.report.model import Protocol, Report
from gpubench.search.space import Candidate
from gpubench.study import rounds
from gpubench.study.book import Book
from gpubench.study.paired import SIDES, Comparison
from gpubench.study.rounds import StopRule
from tests import reports
from tests.faults.scripted import Planted, study, threads_matrix

COUNTED = StopRule(count=4)
TIMED = StopRule(count=6, minimum=3, limit_s=60, replacements=3)


@pytest.mark.parametrize(
    ("rule", "done", "seconds", "undisturbed", "over"),
    [
        (COUNTED, 3, 1e9, 0, False),
        (COUNTED, 4, 0, 0, True),  # nothing is replaced
        (TIMED, 2, 61, 0, False),  # so many run whatever the time
        (TIMED, 3, 59, 0, False),
        (TIMED, 3, 61, 0, True),
        (TIMED, 6, 0, 6, True),
        (TIMED, 6, 0, 5, False),  # one takes the place of a disturbed one
        (TIMED, 6, 61, 5, True),
        (TIMED, 8, 0, 5, False),
        (TIMED, 9, 0, 0, True),  # no more than three are replaced
        (replace(TIMED, count=2), 2, 0, 2, True),  # fewer than the minimum were asked for
    ],
)
def test_when_rounds_end(rule: StopRule, done: int, seconds: float, undisturbed: int, over: bool) -> None:
    assert rule.is_over(done, seconds, lambda: undisturbed) is over


def test_what_is_undecided_is_asked_once_and_then_goes_on_until_the_time_is_up() -> None:
    asked: list[bool] = []

    def undecided() -> bool:
        asked.append(True)
        return True

    rule = StopRule(count=5, minimum=5, limit_s=60, undecided=undecided)
    assert [rule.is_over(done, 10, lambda: 0) for done in range(4, 9)] == [False] * 5
    assert asked == [True]
    assert rule.is_over(9, 60, lambda: 0)
    assert replace(rule, undecided=lambda: False).is_over(5, 10, lambda: 0)


# ----- both sides of ab


class Clock:
    """Time that processes alone take."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def compared(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: Callable[[str, int], float],
    *,
    limit_s: float = 60.0,
) -> tuple[Planted, Comparison, str]:
    """A comparison whose processes take 2 s each: the executor, the comparison and its verdict."""
    clock = Clock()
    monkeypatch.setattr(rounds, "time", clock)
    monkeypatch.setattr("gpubench.study.paired.time", clock)

    class Slow(Planted):
        def run_alone(self, job: Job) -> Outcome:
            clock.now += 2.0
            return super().run_alone(job)

    base = reports.report(device=reports.CPU, finished=False)
    blank = msgspec.structs.replace(base, protocol=Protocol(), session="s", measurements=[])
    executor = Slow(seconds)
    comparison = Comparison(
        executor=executor,
        books={side: Book(blank, folder / f"{side}.json", Quiet()) for side in SIDES},
        labels={"a": "a", "b": "b"},
        limits=Limits(slowdown=0.025),
        rounds=5,
        time_limit_s=limit_s,
    )
    return executor, comparison, comparison.run([Candidate("baseline", {"precision": "fp32"}, ())]).verdict


def indexes(report: Report) -> list[list[int]]:
    return [[part.index for part in row.rounds if part.phase == "final"] for row in report.measurements]


def test_sides_that_are_alike_are_decided_after_the_first_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, comparison, verdict = compared(tmp_path, monkeypatch, lambda name, position: 0.1 + 1e-5 * (position % 3))
    assert verdict == "unchanged"
    assert len(executor.ran) == 2 + 2 * 5
    assert executor.ran[2:4] == executor.ran[4:6][::-1]  # every other round is reversed
    for side in SIDES:
        report = store.load(tmp_path / f"{side}.json")
        assert report == comparison.books[side].report
        assert report.finished_at is not None
        assert indexes(report) == [[1, 2, 3, 4, 5]]
        assert sorted(name.split()[0] for name in executor.ran[:2]) == ["a", "b"]


def test_an_undecided_row_goes_on_until_its_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(name: str, position: int) -> float:
        return 0.1 * (1.2 if (position + name.startswith("a")) % 3 == 0 else 1.0)

    _, comparison, verdict = compared(tmp_path, monkeypatch, seconds, limit_s=60.0)
    assert verdict == "inconclusive"
    # 4 s alone and 4 s a round: the 14th round begins at 56 s.
    assert indexes(comparison.books["a"].report) == [list(range(1, 15))]


def test_no_time_is_too_short_for_the_fewest_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, comparison, _ = compared(tmp_path, monkeypatch, lambda name, position: 0.1, limit_s=0.0)
    assert indexes(comparison.books["b"].report) == [[1, 2, 3, 4, 5]]


# ----- the book


def test_a_full_disk_does_not_end_a_run_that_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Heard(Quiet):
        def note(self, text: str) -> None:
            said.append(text)

    def full(report: Report, path: Path) -> None:
        raise GpubenchError("No space left on device.")

    book = Book(reports.report(), tmp_path / "r.json", Heard())
    book.save(first=True)
    before = (tmp_path / "r.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(store, "save", full)
        book.note("kept in memory")
        book.save()
        book.save()
        assert said == ["Cannot save the report yet; the run continues: No space left on device."]
        assert book.unsaved == "No space left on device."
        assert (tmp_path / "r.json").read_bytes() == before
        with pytest.raises(GpubenchError):
            book.save(first=True)
    book.save()
    assert book.unsaved == ""
    assert store.load(tmp_path / "r.json").notes[-1] == "kept in memory"


def test_rows_stand_in_the_order_of_the_plan_and_positions_follow_from_the_rounds(tmp_path: Path) -> None:
    class Failing(Planted):
        def run_alone(self, job: Job) -> Outcome:
            result = super().run_alone(job)
            return replace(result, status="crashed", reason="planted", sampled=None) if "102" in job.id else result

    planted = Failing(lambda row_id, _: 0.1 if row_id == "baseline" else 0.05)
    made = study(tmp_path / "r.json", planted, threads_matrix(3), Protocol(final_rounds=3, seed=3))
    report = made.compare()
    assert [row.id for row in report.measurements] == report.plan.configurations
    assert [row.id for row in report.measurements][:4] == ["baseline", "threads=101", "threads=102", "threads=103"]
    positions = sorted(part.position for row in report.measurements for part in row.rounds)
    failed = planted.ran.index("threads=102")
    assert positions == [position for position in range(len(planted.ran)) if position != failed]
    assert made.book.position == len(planted.ran)


def test_rounds_that_end_early_say_so(tmp_path: Path) -> None:
    planted = Planted(lambda row_id, _: 0.1 if row_id == "baseline" else 0.05)
    made = study(tmp_path / "r.json", planted, threads_matrix(1), Protocol(final_rounds=6))
    made.rounds_s = 0.0
    report = made.compare()
    assert "The final ended after 3 of 6 rounds: 0 s had passed." in report.notes
    made = study(tmp_path / "r2.json", Planted(planted.seconds), threads_matrix(1), Protocol(final_rounds=6))
    made.rounds_s = inf
    assert not any("ended after" in note for note in made.compare().notes)
