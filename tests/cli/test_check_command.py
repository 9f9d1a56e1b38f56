"""`gpubench check` on the command line: exit codes, baselines side by side, bad input, and that it starts at once."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from gpubench.cli.main import run
from gpubench.regression.comparison import NamedReport, check
from gpubench.regression.verdicts import Limits
from gpubench.report.model import Report
from gpubench.report.store import encode, load, save
from tests.reports import CPU, GPU, ROLES, alone, baseline, report, row

STEADY = [1.0, 1.001, 0.999, 1.0, 1.0, 1.0]


def measured(step_s: float = 0.1, **options: Any) -> Report:
    fast = row(
        "fast", step_s, {"channels_last": "on"}, roles=[alone("channels_last")],
        explore_s=[step_s * value for value in STEADY],
    )  # fmt: skip
    return report(baseline(0.2, explore_s=[0.2 * value for value in STEADY]), fast, **options)


def saved(path: Path, found: Report) -> Path:
    save(found, path)
    return path


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return saved(tmp_path / "before.json", measured())


def call(*arguments: object) -> int:
    return run(["check", *map(str, arguments)])


def noisy() -> Report:
    return report(baseline(0.1, explore_s=[0.1, 0.13, 0.08, 0.11]))


@pytest.mark.parametrize(("step_s", "code"), [(0.1, 0), (0.08, 0), (0.12, 1)])
def test_the_exit_code_tells(tmp_path: Path, before: Path, step_s: float, code: int) -> None:
    assert call(saved(tmp_path / "now.json", measured(step_s)), "--baseline", before) == code


def test_inconclusive_is_4_unless_that_is_allowed(tmp_path: Path) -> None:
    path = saved(tmp_path / "noisy.json", noisy())
    assert call(path, "--baseline", path) == 4
    assert call(path, "--baseline", path, "--inconclusive-ok") == 0


def test_unlike_machines_are_3_unless_that_is_allowed(tmp_path: Path, before: Path) -> None:
    other = measured(device=msgspec.structs.replace(GPU, uuid="GPU-other"))
    now = saved(tmp_path / "now.json", other)
    assert call(now, "--baseline", before) == 3
    assert call(now, "--baseline", before, "--allow-different", "uuid") == 0


def test_a_regression_outweighs_what_cannot_be_compared(tmp_path: Path, before: Path) -> None:
    other = saved(tmp_path / "a.json", measured(device=msgspec.structs.replace(GPU, uuid="GPU-other")))
    slow = saved(tmp_path / "b.json", measured(0.2))
    assert call(other, slow, "--baseline", before) == 1


def test_limits_are_the_users_own(tmp_path: Path, before: Path) -> None:
    now = saved(tmp_path / "now.json", measured(0.12))
    assert call(now, "--baseline", before, "--max-slowdown", "30%", "--max-p95-growth", "0.3") == 0
    for text in ("five", "-5%", "5", "1e3%", "", "nan%"):
        assert call(now, "--baseline", before, "--max-slowdown", text) == 2


def test_json_is_what_was_decided(tmp_path: Path, before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = saved(tmp_path / "now.json", measured(0.12))
    kept = tmp_path / "verdicts.json"
    assert call(now, "--baseline", before, "--format", "json", "--output", kept) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert found == json.loads(kept.read_text())[0]
    assert (found["verdict"], found["exit_code"]) == ("regressed", 1)
    (fps,) = [
        one for line in found["rows"] if line["id"] == "fast" for one in line["findings"] if one["metric"] == "fps"
    ]
    assert fps["change"] == pytest.approx(-1 / 6, rel=1e-3)


@pytest.mark.parametrize("format_", ["table", "markdown", "junit", "github"])
def test_every_format_names_the_row(
    before: Path, tmp_path: Path, format_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    now = saved(tmp_path / "now.json", measured(0.12))
    assert call(now, "--baseline", before, "--format", format_) == 1
    assert "fast" in capsys.readouterr().out


# ----- baselines


def test_a_baseline_is_taken_with_its_reason(tmp_path: Path) -> None:
    now, folder = saved(tmp_path / "now.json", measured()), tmp_path / "baselines"
    assert call(now, "--baseline", folder, "--update", "--reason", "first one") == 0
    (path,) = folder.rglob("*.json")
    kept = load(path)
    assert kept.adopted is not None
    assert (kept.adopted.reason, kept.adopted.replaces) == ("first one", None)
    slower = saved(tmp_path / "slower.json", measured(0.15, created_at="2026-02-02T00:00:00+00:00"))
    assert call(slower, "--baseline", folder) == 1
    assert call(slower, "--baseline", folder, "--update", "--reason", "a better model") == 0
    assert call(slower, "--baseline", folder) == 0
    adopted = load(path).adopted
    assert adopted is not None
    assert (adopted.reason, adopted.replaces) == ("a better model", measured().created_at)


def test_several_devices_and_versions_stand_side_by_side(tmp_path: Path) -> None:
    folder = tmp_path / "baselines"
    variants = {
        "gpu-0": measured(0.1),
        "gpu-1": measured(0.2, device=msgspec.structs.replace(GPU, uuid="GPU-1111-2222")),
        "training": measured(0.3, mode="training"),
        "parameters": measured(0.4, parameters={"task": "decode"}),
    }
    torch = msgspec.structs.replace(measured().environment, torch="2.14.0")
    variants["torch"] = msgspec.structs.replace(measured(0.5), environment=torch)
    for name, found in variants.items():
        assert call(saved(tmp_path / f"{name}.json", found), "--baseline", folder, "--update", "--reason", name) == 0
    assert len(list(folder.rglob("*.json"))) == len(variants)
    for name in variants:
        assert call(tmp_path / f"{name}.json", "--baseline", folder) == 0


def test_no_baseline_of_that_workload_is_3(tmp_path: Path, before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "baselines"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert call(before, "--baseline", empty) == 3
    assert call(before, "--baseline", folder, "--update", "--reason", "x") == 0
    other = saved(tmp_path / "other.json", measured(name="resnet50"))
    assert call(other, "--baseline", folder) == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "has no baseline for resnet50 inference tiny, only for vae inference tiny. Make one with --update" in shown
    assert call(before, "--baseline", tmp_path / "not there yet") == 3


def test_a_report_without_a_baseline_does_not_hide_what_another_says(tmp_path: Path, before: Path) -> None:
    folder = tmp_path / "baselines"
    assert call(before, "--baseline", folder, "--update", "--reason", "x") == 0
    other = saved(tmp_path / "other.json", measured(name="resnet50"))
    slow = saved(tmp_path / "slow.json", measured(0.2))
    for order in ((other, slow), (slow, other)):
        assert call(*order, "--baseline", folder) == 1


def test_a_report_is_not_its_own_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor is one that was cut off, nor a side of an A/B comparison."""
    folder = tmp_path / "results"
    now = saved(folder / "now.json", measured(0.2, created_at="2026-03-03T00:00:00+00:00"))
    saved(folder / "cut.json", measured(0.2, finished=False, created_at="2026-03-02T00:00:00+00:00"))
    side = msgspec.structs.replace(measured(0.2, created_at="2026-03-04T00:00:00+00:00"), session="s")
    saved(folder / "side.json", side)
    assert call(now, "--baseline", folder) == 3
    saved(folder / "old.json", measured(0.1))
    assert call(now, "--baseline", folder) == 1
    assert call(folder / "side.json", "--baseline", tmp_path / "b", "--update", "--reason", "x") == 2
    assert "a side of an A/B comparison" in capsys.readouterr().err


def test_what_was_made_a_baseline_on_purpose_outweighs_what_lies_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    saved(folder / "newer.json", measured(0.2, created_at="2026-03-03T00:00:00+00:00"))
    old = saved(tmp_path / "old.json", measured(0.1))
    assert call(old, "--baseline", folder, "--update", "--reason", "x") == 0
    assert call(saved(tmp_path / "now.json", measured(0.2)), "--baseline", folder) == 1


def test_the_baseline_that_differs_only_where_that_is_allowed_is_picked(tmp_path: Path) -> None:
    folder = tmp_path / "baselines"
    torch = msgspec.structs.replace(measured().environment, torch="2.12.0", cudnn="8")
    saved(folder / "two.json", msgspec.structs.replace(measured(0.1), environment=torch))
    protocol = msgspec.structs.replace(measured().protocol, block_s=0.2)
    saved(folder / "one.json", msgspec.structs.replace(measured(0.5), protocol=protocol))
    now = saved(tmp_path / "now.json", measured(0.1))
    assert call(now, "--baseline", folder, "--allow-different", "torch", "--allow-different", "cudnn") == 0


def test_a_baseline_of_something_else_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = saved(tmp_path / "baseline.json", measured())
    other = measured(device=msgspec.structs.replace(GPU, name="Other GPU"))
    now = saved(tmp_path / "now.json", other)
    assert call(now, "--baseline", kept, "--update", "--reason", "x") == 2
    assert "is the baseline of compare-opts vae inference tiny batch size 8 NVIDIA Test GPU" in capsys.readouterr().err
    assert load(kept) == measured()


def test_batch_sizes_and_commands_stand_side_by_side(tmp_path: Path) -> None:
    folder = tmp_path / "baselines"
    plan = msgspec.structs.replace(measured().plan, command="batch-sweep")
    for index, found in enumerate((measured(), measured(batch_size=4), msgspec.structs.replace(measured(), plan=plan))):
        path = saved(tmp_path / f"{index}.json", found)
        assert call(path, "--baseline", folder, "--update", "--reason", "x") == 0
    assert len(list(folder.rglob("*.json"))) == 3


def test_the_newest_of_alike_baselines_is_picked(tmp_path: Path) -> None:
    folder = tmp_path / "baselines"
    saved(folder / "b.json", measured(0.1, created_at="2026-03-01T00:00:00+00:00"))
    saved(folder / "a.json", measured(0.5, created_at="2026-01-01T00:00:00+00:00"))
    saved(folder / "c.json", measured(0.5, created_at="2026-02-01T00:00:00+00:00"))
    assert call(saved(tmp_path / "now.json", measured(0.1)), "--baseline", folder) == 0


def test_what_is_no_baseline_is_not_taken_for_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished = saved(tmp_path / "cut.json", measured(finished=False))
    assert call(unfinished, "--baseline", tmp_path / "b.json", "--update", "--reason", "x") == 2
    failed = saved(tmp_path / "failed.json", report(row("baseline", None, roles=[ROLES["baseline"]], status="oom")))
    assert call(failed, "--baseline", tmp_path / "b.json", "--update", "--reason", "x") == 2
    whole = saved(tmp_path / "whole.json", measured())
    assert call(whole, "--baseline", tmp_path / "b.json", "--update") == 2
    assert call(whole, "--baseline", tmp_path / "b.json", "--reason", "x") == 2
    foreign = tmp_path / "b.json"
    foreign.write_text("my notes")
    assert call(whole, "--baseline", foreign, "--update", "--reason", "x") == 2
    assert foreign.read_text() == "my notes"
    twin = saved(tmp_path / "twin.json", measured())
    assert call(whole, twin, "--baseline", tmp_path / "f", "--update", "--reason", "x") == 2
    assert not (tmp_path / "f").exists()
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 6
    assert all(line.startswith("gpubench: ") for line in errors)


# ----- output


def test_files_of_every_format_come_from_one_check(tmp_path: Path, before: Path) -> None:
    now = saved(tmp_path / "now.json", measured(0.12))
    files = [tmp_path / name for name in ("v.json", "v.md", "v.xml")]
    options = [option for path in files for option in ("--output", path)]
    assert call(now, "--baseline", before, "--format", "github", *options) == 1
    assert json.loads(files[0].read_text())[0]["verdict"] == "regressed"
    assert files[1].read_text().startswith("## ")
    assert ElementTree.parse(files[2]).find(".//failure") is not None


def test_reports_are_not_overwritten_by_verdicts(tmp_path: Path, before: Path) -> None:
    now = saved(tmp_path / "now.json", measured())
    for path in (now, before):
        assert call(now, "--baseline", before, "--output", path) == 2
        assert call(tmp_path, "--baseline", tmp_path, "--output", path) == 2
    assert (load(now), load(before)) == (measured(), measured())
    assert call(now, "--baseline", before, "--output", tmp_path / "v.txt") == 2


def test_one_run_against_itself_is_noted(tmp_path: Path, before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy.json"
    copy.write_bytes(before.read_bytes())
    later = saved(tmp_path / "later.json", measured(created_at="2026-01-09T00:00:00+00:00"))
    for path, noted in ((copy, True), (later, False)):
        call(path, "--baseline", before)
        assert ("Both are the same run" in " ".join(capsys.readouterr().out.split())) is noted


def test_reports_without_rows_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = saved(tmp_path / "empty.json", msgspec.structs.replace(measured(), measurements=[]))
    assert call(empty, "--baseline", empty) == 3
    assert "Neither report has a row." in capsys.readouterr().out


def test_memory_that_moved_within_its_grain_is_said_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for size in (31, 50):
        fast = row("fast", 0.1, {"channels_last": "on"}, roles=[alone("channels_last")], memory_mib=size)
        paths.append(saved(tmp_path / f"{size}.json", report(baseline(0.2), fast, device=CPU)))
    call(paths[1], "--baseline", paths[0])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Memory changes within 20.0 MiB, as between identical processes, count as unchanged: fast." in shown


def test_one_interval_for_what_is_said_and_what_is_decided(tmp_path: Path) -> None:
    """What is `unchanged` has the limit outside of the interval that is printed."""
    found = {"unchanged": 0, "inconclusive": 0}
    for slower in (1.0, 1.01, 1.02, 1.025, 1.03, 1.035):
        new, old = (measured(time_s, created_at=f"2026-01-0{day}") for day, time_s in ((1, 0.1 * slower), (2, 0.1)))
        for row_ in check(NamedReport("new", new), NamedReport("old", old), Limits()).rows:
            (time,) = [one for one in row_.findings if one.metric == "fps"]
            assert time.change_low is not None and time.limit is not None
            assert (time.verdict == "unchanged") == (1 / (1 + time.change_low) - 1 < time.limit)
            found[time.verdict] += 1
    assert min(found.values()) > 0


# ----- bad input


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("empty", ""),
        ("cut off", '{"schema_version": 1, "tool": {"name": "gpub'),
        ("foreign", '{"a": 1}'),
        ("newer", '{"schema_version": 99, "tool": {"name": "gpubench", "version": "9"}}'),
        ("list", "[]"),
        ("NaN", '{"schema_version": 1, "fps": NaN, "tool": {"name": "gpubench", "version": "1"}}'),
    ],
)
def test_damaged_reports_are_one_sentence(
    tmp_path: Path, before: Path, name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(text)
    for arguments in ((bad, "--baseline", before), (before, "--baseline", bad)):
        assert call(*arguments) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert "bad.json" in lines[0]


def test_hand_edited_reports_are_refused(tmp_path: Path, before: Path) -> None:
    document = json.loads(before.read_text())
    doubled = {**document, "measurements": [*document["measurements"], document["measurements"][1]]}
    negative = json.loads(before.read_text())
    negative["measurements"][1]["samples_s"][0] = -1.0
    for edited in (doubled, negative, {**document, "measurements": document["measurements"][1:]}):
        path = tmp_path / "edited.json"
        path.write_text(json.dumps(edited))
        assert call(path, "--baseline", before) == 2


def test_no_rows_in_common_cannot_be_compared(tmp_path: Path, before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = saved(tmp_path / "now.json", msgspec.structs.replace(measured(), measurements=[]))
    assert call(before, "--baseline", nothing) == 3
    assert "No row of the baseline ran in both reports." in capsys.readouterr().out
    assert call(nothing, "--baseline", before) == 1
    assert "baseline: status regressed: It is missing from the current report." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("measurements", 1, "items_per_step"), 10**400),
        (("measurements", 1, "memory", "peak_memory_allocated_bytes"), 10**400),
        (("measurements", 1, "memory", "host_peak_resident_bytes"), -1),
        (("measurements", 1, "graph_breaks"), 10**30),
        (("measurements", 1, "fps"), 1e300),
        (("schema_version",), 10**400),
    ],
)
def test_figures_beyond_all_bounds_are_one_sentence(
    tmp_path: Path, before: Path, place: tuple[str | int, ...], value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(before.read_text())
    holder: Any = document
    for key in place[:-1]:
        holder = holder[key]
    if isinstance(value, dict):
        value = {"created_at": "", "fingerprint": "", "workload": "", "rounds": 8, **value}
    holder[place[-1]] = value
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(document))
    for arguments in ((edited, "--baseline", before), (before, "--baseline", edited)):
        assert call(*arguments) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_times_that_nothing_takes_are_refused(tmp_path: Path, before: Path) -> None:
    document = json.loads(before.read_text())
    target = document["measurements"][1]
    target["samples_s"] = [5e-324] * len(target["samples_s"])
    for part in target["rounds"]:
        part["median_s"] = 5e-324
    target["latency_s"].update(median=5e-324, p5=5e-324, p95=5e-324, ci_low=None, ci_high=None)
    target["fps"] = None
    (tmp_path / "edited.json").write_text(json.dumps(document))
    assert call(tmp_path / "edited.json", "--baseline", before) == 2
    assert call(before, "--baseline", tmp_path / "edited.json") == 2


def test_speeds_at_both_ends_of_what_is_allowed_are_compared(tmp_path: Path) -> None:
    slow, fast = (
        report(baseline(step_s, explore_s=[step_s * value for value in STEADY], items=1)) for step_s in (1e8, 1e-12)
    )
    one, other = saved(tmp_path / "slow.json", slow), saved(tmp_path / "fast.json", fast)
    assert call(one, "--baseline", other) == 1
    assert call(other, "--baseline", one) == 0


def test_rows_with_one_configuration_are_refused(tmp_path: Path, before: Path) -> None:
    twin = msgspec.structs.replace(measured().measurements[1], id="twin")
    path = tmp_path / "twins.json"
    path.write_bytes(encode(msgspec.structs.replace(measured(), measurements=[*measured().measurements, twin])))
    assert call(path, "--baseline", before) == 2


def test_a_name_that_is_no_utf_8_is_shown_all_the_same(
    tmp_path: Path, before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Path(f"{tmp_path}/bad\udcff.json")
    bad.write_bytes(before.read_bytes())
    files = [tmp_path / name for name in ("v.json", "v.md", "v.xml")]
    for format_ in ("table", "json", "markdown", "junit", "github"):
        outputs = [text for path in files for text in ("--output", path)]
        assert call(bad, "--baseline", before, "--format", format_, "--max-slowdown", "20%", *outputs) == 0
    assert all(path.read_bytes() for path in files)
    assert run(["history", str(bad), "--format", "json"]) == 0
    assert call(bad, "--baseline", tmp_path / "folder", "--update", "--reason", "why\udcff") == 0
    (adopted,) = (tmp_path / "folder").rglob("*.json")
    assert load(adopted).adopted is not None
    capsys.readouterr()


def test_what_is_no_file_is_passed_over(tmp_path: Path, before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reading a pipe without a writer, or /dev/zero, would never end."""
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / "pipe.json")
    (folder / "zero.json").symlink_to("/dev/zero")
    saved(folder / "old.json", measured())
    assert call(before, "--baseline", folder, "--max-slowdown", "20%") == 0
    assert capsys.readouterr().err.count("is not a regular file") == 2
    assert run(["history", str(folder)]) == 0
    assert call("/dev/zero", "--baseline", folder) == 2
    assert "/dev/zero is a device, not a report." in capsys.readouterr().err


def test_a_byte_order_mark_is_no_damage(tmp_path: Path, before: Path) -> None:
    marked = tmp_path / "marked.json"
    marked.write_bytes(b"\xef\xbb\xbf" + before.read_bytes())
    assert load(marked) == load(before)


@pytest.mark.parametrize("arguments", [["before.json"], ["missing.json"]])
def test_a_full_disk_is_no_regression(before: Path, arguments: list[str]) -> None:
    """Neither verdict nor complaint can be written: Python's own exit code would be that of a regression."""
    command = [sys.executable, "-m", "gpubench", "check", *arguments, "--baseline", "before.json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=before.parent, stdout=full, stderr=full, check=False)
    assert done.returncode == 2


def test_a_fault_of_gpubench_itself_is_no_verdict(
    before: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ArithmeticError("planted")

    monkeypatch.setattr("gpubench.regression.baseline_choice.check", broken)
    assert call(before, "--baseline", before) == 70
    assert "A fault in gpubench: ArithmeticError: planted." in capsys.readouterr().err


def test_wrong_usage_is_one_sentence(before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        (),
        (before,),
        (before, "--baseline", before.with_name("missing.json")),
        (before, "--baseline", before, "--allow-different", "moon"),
        (before, "--baseline", before, "--format", "pdf"),
        (before, "--baseline", ""),
        (before, "--baseline", before, "--confirm"),
        (before, "--baseline", before, "--output", "/proc/nowhere/x.json"),
    ):
        assert call(*arguments) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_former_options_are_answered(before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(before, "--baseline", before, "--quiet", "--inconclusive-ok") == 0
    capsys.readouterr()
    assert call(before, "--baseline", before, "--confirm") == 2
    assert "gpubench ab WORKLOAD --a SIDE" in capsys.readouterr().err


# ----- cost


def test_a_thousand_rows_without_torch(tmp_path: Path) -> None:
    path = saved(tmp_path / "many.json", many_rows(1000))
    code = (
        "import sys; from gpubench.cli.main import run;"
        f"code = run(['check', {str(path)!r}, '--baseline', {str(path)!r}, '--format=json', '--max-slowdown=10%']);"
        "print(code, 'torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stderr.split() == ["0", "False"]
    assert len(json.loads(done.stdout)[0]["rows"]) == 1001


def test_the_cost_grows_with_the_rows_and_not_with_their_square() -> None:
    seconds = dict.fromkeys((250, 1000), math.inf)
    for _ in range(3):
        for count in seconds:
            source = NamedReport("many", many_rows(count))
            began = time.perf_counter()
            check(source, source, Limits())
            seconds[count] = min(seconds[count], time.perf_counter() - began)
    assert seconds[1000] < 9 * seconds[250]


def many_rows(count: int) -> Report:
    rows = [
        row(f"row-{at}", 0.1, {"batch_size": at}, roles=[ROLES["grid"]], explore_s=[0.1 * value for value in STEADY])
        for at in range(count)
    ]
    return report(baseline(0.1, explore_s=[0.1 * value for value in STEADY]), *rows)
