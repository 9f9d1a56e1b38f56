from __future__ import annotations

import importlib
import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from gpubench.analysis.recommendation import recommend
from gpubench.errors import GpubenchError
from gpubench.flags import KINDS
from gpubench.report import store
from gpubench.report.migrations import MIGRATIONS, migrate
from gpubench.report.model import SCHEMA_VERSION, Report
from tests.reports import HOSTILE, baseline, hostile_report, ladder_report, report, row

ROOT = Path(__file__).parents[2]
RESULTS, POOLS = ROOT / "results", ROOT / "benchmarks" / "pools"


def document(**changes: Any) -> dict[str, Any]:
    return {**json.loads(store.encode(report(baseline(), row("other", 0.05, {"channels_last": "on"})))), **changes}


def refusal(data: bytes | dict[str, Any]) -> str:
    with pytest.raises(GpubenchError) as caught:
        store.decode(data if isinstance(data, bytes) else json.dumps(data).encode(), "r.json")
    assert caught.value.hint
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return caught.value.message


@pytest.mark.parametrize("example", [report(), ladder_report(), *map(hostile_report, HOSTILE)])
def test_saved_reports_load_again_and_follow_the_json_schema(example: Report, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "report.json"
    store.save(example, path)
    assert store.load(path) == example
    jsonschema.validate(json.loads(path.read_text()), store.json_schema())
    assert path.read_text().endswith("}\n")
    assert [item.name for item in path.parent.iterdir()] == ["report.json"]


def test_the_json_schema_is_itself_valid_and_refuses_what_loading_refuses() -> None:
    schema = store.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert {"$schema", "$id", "title"} <= schema.keys()
    wrong = document()
    wrong["measurements"][1]["fps"] = "fast"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_a_missing_file_a_folder_and_an_unusable_path_are_named(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "none.json", "There is no file"),
        (tmp_path, "is a folder"),
        (tmp_path / ("x" * 300), "Cannot read"),
        (tmp_path / "nul\0l.json", "Cannot read"),
    ):
        with pytest.raises(GpubenchError, match=words) as caught:
            store.load(path)
        assert tmp_path.name in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "secret.json"
    path.write_text("{}")
    path.chmod(0)
    with pytest.raises(GpubenchError, match="Permission denied"):
        store.load(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"not json", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b'\x89PNG\r\n"', "is not JSON"),
        (b"[]", "not a gpubench report"),
        (b"3", "not a gpubench report"),
        (b'{"machine_info": {}}', "not a gpubench report: Object missing required field `schema_version`"),
        (b'{"schema_version": 1}', "missing required field `tool`"),
        (
            b'{"schema_version": 1, "tool": {"name": "pytest", "version": "8"}}',
            "was written by 'pytest', not by gpubench",
        ),
        (
            b'{"schema_version": "\\u001b[31m", "tool": {"name": "\\u001b[31m", "version": "8"}}',
            "schema_version: Expected",
        ),
        (b'{"schema_version": NaN}', "holds the number NaN"),
        (b'{"schema_version": 1, "x": -Infinity}', "holds the number -Infinity"),
        (b'{"schema_version": 1e999}', "out of range"),
        (b'{"schema_version": 1, "x": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"schema_version": 1, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_what_is_no_report_is_refused_in_one_sentence(data: bytes, words: str) -> None:
    assert words in refusal(data)
    assert "\x1b" not in refusal(data)


def test_a_report_cut_off_anywhere_is_refused() -> None:
    data = store.encode(ladder_report()).rstrip()
    for length in range(1, len(data), 997):
        assert "is cut off" in refusal(data[:length])


def test_a_wrong_type_is_named_with_its_place() -> None:
    wrong = document()
    wrong["measurements"][1]["fps"] = "fast"
    assert "measurements[1].fps: Expected" in refusal(wrong)
    wrong = document()
    wrong["measurements"][0]["status"] = "fine\x1b[31m"
    assert "measurements[0].status" in refusal(wrong)
    assert "\x1b" not in refusal(wrong)
    wrong = document()
    wrong["measurements"][0]["latency_s"]["median"] = -1.0
    assert "measurements[0].latency_s.median" in refusal(wrong)
    assert "protocol" in refusal({key: value for key, value in document().items() if key != "protocol"})


def test_nan_in_a_figure_is_refused_on_loading() -> None:
    text = store.encode(report(baseline())).decode().replace('"fps": 80.0', '"fps": NaN')
    assert "holds the number NaN" in refusal(text.encode())


def test_a_newer_schema_says_upgrade_whatever_else_changed() -> None:
    newer = {"schema_version": SCHEMA_VERSION + 1, "tool": {"name": "gpubench", "version": "9"}, "rows": {}}
    with pytest.raises(GpubenchError, match=r"newer gpubench.*schema_version is 3.*Upgrade"):
        store.decode(json.dumps(newer).encode(), "r.json")


def test_an_older_schema_without_migration_is_refused() -> None:
    assert "schema_version 0" in refusal(document(schema_version=0))


def test_migrations_run_one_version_at_a_time() -> None:
    steps = {1: lambda found: {**found, "b": found["a"] + 1}, 2: lambda found: {**found, "c": found["b"] + 1}}
    assert migrate({"a": 1}, 1, "r", steps, target=3) == {"schema_version": 3, "a": 1, "b": 2, "c": 3}
    assert migrate({"b": 7}, 2, "r", steps, target=3) == {"schema_version": 3, "b": 7, "c": 8}
    assert migrate({"d": 0}, 3, "r", steps, target=3) == {"d": 0}
    with pytest.raises(GpubenchError, match="reads 1 to 3"):
        migrate({}, 0, "r", steps, target=3)


def test_there_is_a_migration_from_every_older_version() -> None:
    assert sorted(MIGRATIONS) == list(range(1, SCHEMA_VERSION))


def test_the_flags_of_version_1_read_as_before() -> None:
    texts = ["unsteady: 4 s: of warm-up", "contaminated (allowed): by a miner", "noisy", "levitating: 3 cm"]
    old = document(schema_version=1)
    old["measurements"][1]["flags"] = texts
    old["measurements"][1]["rounds"][0]["flags"] = texts[:1]
    loaded = store.decode(json.dumps(old).encode(), "r.json").measurements[1]
    assert list(map(str, loaded.flags)) == texts
    assert [flag.effect for flag in loaded.flags] == ["gates", "allowed", "caution", "note"]
    assert loaded.rounds[0].flags == loaded.flags[:1]


def test_damaged_flags_of_version_1_are_named() -> None:
    for damaged in (3, ["unsteady: x", 3], {"a": 1}, [None]):
        old = document(schema_version=1)
        old["measurements"][1]["flags"] = damaged
        assert "measurements[1].flags" in refusal(old) or "measurements[...].flags" in refusal(old)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/*.json")), ids=lambda path: path.stem)
def test_committed_reports_keep_their_flags(path: Path) -> None:
    raw, loaded = json.loads(path.read_text()), store.load(path)
    for before, after in zip(raw["measurements"], loaded.measurements, strict=True):
        for old, new in [(before, after), *zip(before["rounds"], after.rounds, strict=True)]:
            shown = [text if isinstance(text, str) else f"{text['kind']}: {text['detail']}" for text in old["flags"]]
            assert list(map(str, new.flags)) == shown
            assert {flag.kind for flag in new.flags} <= set(KINDS)


@pytest.mark.parametrize("path", sorted(POOLS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_pools_of_the_calibration_still_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(POOLS.parent))
    calibration = importlib.import_module("calibration")
    pool = json.loads(path.read_text())
    parts = [part["a"] for part in calibration.usable(pool)]
    loaded = calibration.report_of(pool, parts, 1.0, None).measurements[0]
    assert [list(map(str, part.flags)) for part in loaded.rounds] == [part["flags"] for part in parts]


def test_a_doubled_id_is_refused() -> None:
    assert "'baseline' occurs more than once" in refusal(store.encode(report(baseline(), baseline())))


def test_rounds_must_account_for_the_samples() -> None:
    wrong = document()
    wrong["measurements"][1]["samples_s"].pop()
    assert "measurements[1].rounds account for 11 samples, samples_s has 10" in refusal(wrong)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda row: row["rounds"][0].update(median_s=0.01),
            "rounds[0].median_s is 0.01, but the median of its samples is 0.05",
        ),
        (
            lambda row: row["rounds"].append(dict(row["rounds"][0])),
            "rounds[1] has 11 samples and is number 1 of explore: both must be",
        ),
        (lambda row: row["rounds"][0].update(index=-3), "rounds[0] has 11 samples and is number -3 of explore"),
        (lambda row: row.update(fps=1e6), "fps is 1e+06, which does not match 8 items in 0.05 s"),
    ],
)
def test_figures_that_do_not_follow_from_the_samples_are_refused(edit: Callable[[Any], None], words: str) -> None:
    wrong = document()
    edit(wrong["measurements"][1])
    assert f"measurements[1].{words}" in refusal(wrong)


def test_a_recommended_speedup_lies_in_its_interval() -> None:
    found = recommend(ladder_report(), "fps").recommendation
    wrong = json.loads(store.encode(msgspec.structs.replace(ladder_report(), recommendation=found)))
    store.decode(json.dumps(wrong).encode(), "report.json")
    wrong["recommendation"]["speedup"] = 9.0
    assert "the recommended speedup of 9 is not between" in refusal(wrong)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_not_saved_and_the_old_file_stays(number: float, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    store.save(report(baseline()), path)
    before = path.read_bytes()
    bad = msgspec.structs.replace(baseline(), fps=number)
    with pytest.raises(GpubenchError, match=r"measurements\[0\].fps is -?(nan|inf)"):
        store.save(report(bad), path)
    with pytest.raises(GpubenchError, match=r"measurements\[0\].samples_s\[1\]"):
        store.save(report(msgspec.structs.replace(baseline(), samples_s=[1.0, number])), path)
    assert path.read_bytes() == before


def test_a_failure_while_writing_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    store.save(report(baseline()), path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GpubenchError, match="No space left on device"):
        store.save(ladder_report(), path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["r.json"]


def test_unwritable_places_are_refused_before_and_at_saving(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, words in (
        (tmp_path / "file" / "r.json", "Cannot write"),
        (tmp_path, "it is a folder"),
        (tmp_path / ("x" * 300), "File name too long"),
        (Path("/dev/null"), "a device or a pipe"),
        (Path("/proc/nowhere/r.json"), "Cannot write"),
    ):
        with pytest.raises(GpubenchError, match=words):
            store.check_writable(path)
        with pytest.raises(GpubenchError, match=words):
            store.save(report(), path)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_of_two_runs_that_begin_one_report_the_second_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.json"
    path.parent.mkdir()
    path.touch()  # an empty file is nobody's report
    store.create(report(), path)
    before = path.read_bytes()
    with pytest.raises(GpubenchError, match="Another run has just begun"):
        store.create(report(baseline()), path)
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == ["r.json"]


def test_checking_leaves_an_existing_report_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.json"
    store.check_writable(path)
    assert not path.exists()
    store.save(report(baseline()), path)
    before = path.read_bytes()
    store.check_writable(path)
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == ["r.json"]


def test_saving_through_a_link_writes_its_target(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    link.symlink_to(target)
    store.save(report(), link)
    assert link.is_symlink()
    assert store.load(target) == report()


def test_a_saved_report_has_ordinary_permissions(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        store.save(report(), tmp_path / "r.json")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "r.json").stat().st_mode) == 0o644


def test_a_report_in_another_encoding_is_refused() -> None:
    text = store.encode(report(baseline())).decode().replace("baseline", "bas\xe9line")
    assert "no UTF-8" in refusal(text.encode("latin-1"))
