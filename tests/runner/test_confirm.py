"""`gpubench check --confirm`: what looked slower is measured again, beside what did not."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from gpubench.analysis.check import Source, check
from gpubench.analysis.verdicts import Check, Limits
from gpubench.cli.confirm import controls_of, open_rows, suspects_of
from gpubench.cli.progress import Quiet
from gpubench.render.check_markdown import check_markdown
from gpubench.render.github import github
from gpubench.results.schema import Report
from gpubench.results.store import load
from gpubench.runner.confirm import FIRST_LOOK, Confirmer
from tests.faults.scripted import Planted
from tests.reports import ROLES, baseline, report, row
from tests.running import BUSY, MODELS, gpubench

STEADY = [1.0, 1.002, 0.998, 1.001, 0.999]


def measured(slow: float = 1.0) -> Report:
    """Three rows in 5 processes each; `suspect` took `slow` times as long."""
    return report(
        baseline(0.1, explore_s=[0.1 * value for value in STEADY]),
        row(
            "steady", 0.05, {"channels_last": "on"}, roles=[ROLES["grid"]],
            explore_s=[0.05 * value for value in STEADY],
        ),
        row(
            "suspect", 0.08, {"compile": "default"}, roles=[ROLES["grid"]],
            explore_s=[0.08 * slow * value for value in STEADY],
        ),
    )  # fmt: skip


def confirmed(path: Path, current: Report, planted: Planted, time_limit_s: float = 0.0) -> Check:
    """The check of `current` against `measured()` after its suspects were measured again by `planted`."""
    before, limits = Source("old", measured()), Limits()
    found = check(Source("new", current), before, limits)
    suspects = suspects_of(found, before.report, current)
    controls = controls_of(found, suspects)

    def is_open(newest: Report) -> bool:
        decided = check(Source("new", newest), before, limits)
        return bool(open_rows(decided, before.report, newest, suspects))

    newest = Confirmer(current, path, planted, Quiet(), is_open, time_limit_s).run(list(suspects), controls)
    assert load(path) == newest
    return check(Source("new", newest), before, limits)


def seconds(row_id: str, slow: float, machine: float = 1.0) -> float:
    return machine * {"baseline": 0.1, "steady": 0.05, "suspect": 0.08 * slow}[row_id]


def test_what_was_slow_by_bad_luck_is_cleared(tmp_path: Path) -> None:
    planted = Planted(lambda row_id, _: seconds(row_id, 1.0))
    found = confirmed(tmp_path / "r.json", measured(1.1), planted)
    assert found.verdict == "unchanged"
    assert sorted(set(planted.ran)) == ["baseline", "steady", "suspect"]


def test_what_is_slow_stays_so(tmp_path: Path) -> None:
    planted = Planted(lambda row_id, _: seconds(row_id, 1.1))
    found = confirmed(tmp_path / "r.json", measured(1.1), planted)
    assert found.verdict == "regressed"
    (time,) = [one for line in found.rows if line.id == "suspect" for one in line.findings if one.metric == "fps"]
    assert time.change == pytest.approx(1 / 1.1 - 1, abs=0.005)
    assert time.rounds == FIRST_LOOK


def test_a_machine_that_got_slower_as_a_whole_makes_nothing_slower(tmp_path: Path) -> None:
    """30 % slower for everything: a comparison with the file alone would call it a regression."""
    planted = Planted(lambda row_id, _: seconds(row_id, 1.0, machine=1.3))
    found = confirmed(tmp_path / "r.json", measured(1.1), planted)
    assert [one.verdict for one in found.rows if one.id == "suspect"] == ["unchanged"]
    for line in found.rows:  # controls as the run had them, suspects without what the machine did
        (time,) = [one for one in line.findings if one.metric == "fps"]
        assert time.baseline and time.current and time.change is not None
        assert time.current / time.baseline - 1 == pytest.approx(time.change)
        assert time.change == pytest.approx(0, abs=0.01)
    (note,) = [text for text in found.notes if text.startswith("Measured again on ")]
    assert ": suspect; beside " in note
    assert "came out +30" in note or "came out +29" in note
    assert note in check_markdown([found]) and note in github([found])


def test_controls_that_were_disturbed_meanwhile_keep_their_own_verdict(tmp_path: Path) -> None:
    busy = ["contaminated: other processes kept 1.0 cores busy, most of it pid 7 (miner)"]
    planted = Planted(
        lambda row_id, _: seconds(row_id, 1.0), flags=lambda row_id, _: busy if row_id != "suspect" else []
    )
    found = confirmed(tmp_path / "r.json", measured(1.1), planted)
    verdicts = {line.id: line.verdict for line in found.rows}
    assert (verdicts["baseline"], verdicts["steady"]) == ("unchanged", "unchanged")


def test_rounds_are_interleaved_and_reversed_in_every_other(tmp_path: Path) -> None:
    planted = Planted(lambda row_id, _: seconds(row_id, 1.0))
    confirmed(tmp_path / "r.json", measured(1.1), planted)
    orders = [planted.ran[start : start + 3] for start in range(0, 3 * FIRST_LOOK, 3)]
    assert all(sorted(order) == ["baseline", "steady", "suspect"] for order in orders)
    assert orders[1] == orders[0][::-1]
    assert orders[3] == orders[2][::-1]


def test_it_goes_on_while_it_is_open_and_stops_once_it_is_not(tmp_path: Path) -> None:
    noisy = Planted(lambda row_id, position: seconds(row_id, 1.0) * (1.0 if position % 2 else 1.15))
    found = confirmed(tmp_path / "r.json", measured(1.1), noisy, time_limit_s=0.5)
    assert len(noisy.ran) > 3 * FIRST_LOOK
    assert found.verdict in ("inconclusive", "unchanged")
    clear = Planted(lambda row_id, _: seconds(row_id, 1.1))
    confirmed(tmp_path / "s.json", measured(1.1), clear, time_limit_s=60)
    assert len(clear.ran) == 3 * FIRST_LOOK


def test_what_was_cut_off_before_the_first_look_leaves_the_report_as_it_was(tmp_path: Path) -> None:
    def cut(row_id: str, position: int) -> float:
        if position == 4 * 3:
            raise KeyboardInterrupt
        return seconds(row_id, 1.0)

    path = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        confirmed(path, measured(1.1), Planted(cut))
    assert not path.exists()


def test_the_rounds_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    confirmed(path, measured(1.1), Planted(lambda row_id, _: seconds(row_id, 1.1)))
    first = load(path)
    assert first.confirmation is not None
    assert (first.confirmation.suspects, sorted(first.confirmation.controls)) == (["suspect"], ["baseline", "steady"])
    (suspect,) = [one for one in first.measurements if one.id == "suspect"]
    assert [part.index for part in suspect.rounds if part.phase == "confirm"] == list(range(1, FIRST_LOOK + 1))


def test_controls_are_the_rows_that_moved_least() -> None:
    def rows(*slower: float) -> Report:
        return report(
            baseline(0.1, explore_s=[0.1 * slower[0] * value for value in STEADY]),
            *(
                row(
                    f"row-{index}", 0.1, {"batch_size": index}, roles=[ROLES["grid"]],
                    explore_s=[0.1 * slow * value for value in STEADY],
                )
                for index, slow in enumerate(slower[1:])
            ),
        )  # fmt: skip

    new, old = rows(1.02, 1.001, 1.3, 0.998, 0.98), rows(1, 1, 1, 1, 1)
    found = check(Source("new", new), Source("old", old), Limits())
    suspects = suspects_of(found, old, new)
    assert list(suspects) == ["row-1"]
    assert controls_of(found, suspects) == ["row-0", "row-2"]


def tailed(found: Report, row_id: str, factor: float) -> Report:
    """`found` with the slowest samples of each of that row's processes multiplied."""
    (target,) = (one for one in found.measurements if one.id == row_id)
    samples, start = list(target.samples_s), 0
    for part in target.rounds:
        for index in sorted(range(start, start + part.samples), key=lambda at: samples[at])[-2:]:
            samples[index] *= factor
        start += part.samples
    changed = msgspec.structs.replace(target, samples_s=samples)
    return msgspec.structs.replace(
        found, measurements=[changed if one.id == row_id else one for one in found.measurements]
    )


def test_a_suspected_tail_is_no_control_of_itself(tmp_path: Path) -> None:
    current = tailed(measured(), "suspect", 1.6)
    found = check(Source("new", current), Source("old", measured()), Limits())
    suspects = suspects_of(found, measured(), current)
    assert suspects == {"suspect": ("latency_p95",)}
    assert "suspect" not in controls_of(found, suspects)
    planted = Planted(lambda row_id, _: seconds(row_id, 1.0))
    after = confirmed(tmp_path / "r.json", current, planted)
    assert planted.ran.count("suspect") == FIRST_LOOK
    assert after.verdict == "unchanged"


def test_what_stays_open_whatever_is_measured_is_not_measured_again() -> None:
    def flagged(row_id: str) -> Report:
        found = measured()
        return msgspec.structs.replace(
            found,
            measurements=[
                msgspec.structs.replace(
                    one, flags=["contaminated: planted"],
                    rounds=[msgspec.structs.replace(part, flags=["contaminated: planted"]) for part in one.rounds],
                )
                if one.id == row_id else one
                for one in found.measurements
            ],
        )  # fmt: skip

    for current, before, expected in (
        (flagged("suspect"), measured(), {"suspect": ("fps",)}),
        (measured(), flagged("suspect"), {}),
    ):
        found = check(Source("new", current), Source("old", before), Limits())
        assert [one.verdict for one in found.rows] == ["unchanged", "unchanged", "inconclusive"]
        suspects = suspects_of(found, before, current)
        assert suspects == expected
        assert open_rows(found, before, current, suspects) == list(expected)


def test_on_the_command_line(tmp_path: Path) -> None:
    """A baseline that was edited to be half as slow: the same code looks twice as slow as it, and is confirmed so."""
    done = gpubench(
        "compare-opts", f"{MODELS}:slower_in_bf16", "--set", "precision=bf16-autocast", "--strategy", "each",
        "--rounds", "3", "--duel-rounds", "0", "--output", "now.json", "--quiet", *BUSY, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    whole, whole_bytes = load(tmp_path / "now.json"), (tmp_path / "now.json").read_bytes()
    document = json.loads((tmp_path / "now.json").read_text())
    edited = document["measurements"][0]
    edited["samples_s"] = [value / 2 for value in edited["samples_s"]]
    for part in edited["rounds"]:
        part["median_s"] /= 2
    (tmp_path / "old.json").write_text(json.dumps(document))
    command = ["check", "now.json", "--baseline", "old.json", "--confirm", "--confirm-time", "1s", "--format", "json"]
    done = gpubench(*command, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "a report alone is not asked whose that is. If you trust it, add --workload" in done.stderr
    assert (tmp_path / "now.json").read_bytes() == whole_bytes
    command += ["--workload", f"{MODELS}:slower_in_bf16"]
    done = gpubench(*command, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    after = load(tmp_path / "now.json")
    assert after.confirmation is not None
    assert "baseline" in after.confirmation.suspects
    assert len(after.measurements[0].rounds) >= len(whole.measurements[0].rounds) + FIRST_LOOK

    done = gpubench(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert "Not measured again: it was before" in json.loads(done.stdout)[0]["notes"][-1]

    other = msgspec.structs.replace(whole, device=msgspec.structs.replace(whole.device, name="Another CPU"))
    (tmp_path / "now.json").write_bytes(msgspec.json.encode(other))
    done = gpubench(*command, "--allow-different", "device", cwd=tmp_path)
    assert done.returncode == 1  # what the figures said stands
    note = json.loads(done.stdout)[0]["notes"][-1]
    assert note.startswith("Not confirmed: ")
    assert "these differ: device: cpu Another CPU against" in note
