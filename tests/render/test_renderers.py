from __future__ import annotations

import csv as standard_csv
import io
import re
import tomllib

import msgspec
import pytest

from gpubench.analysis.recommendation import recommend
from gpubench.analysis.table import lines
from gpubench.metrics import all_metrics
from gpubench.render.document import Table, TableRow
from gpubench.render.formats import render
from gpubench.render.formats.markdown import escape
from gpubench.render.profile import profile, toml
from gpubench.render.report_document import heading, remarks, report_table, reports_content
from gpubench.report.model import Reading, Recommendation, Report, Summary, Utilization
from tests.render.screen import on_screen
from tests.reports import HOSTILE, baseline, hostile_report, ladder_report, report, row

CODE = "model = model.to(memory_format=torch.channels_last)  # a line that is longer than a narrow terminal is wide"


def chosen(found: Report) -> Recommendation:
    recommendation = recommend(found, "fps").recommendation
    assert recommendation is not None
    return recommendation


def terminal(found: Report, width: int = 120, colour: bool = False, snippet: str = CODE) -> str:
    advised = msgspec.structs.replace(found, recommendation=chosen(found))
    return on_screen(reports_content([advised], lambda *_: snippet), width, colour)


def markdown(found: Report, recommendation: Recommendation | None = None, snippet: str = "") -> str:
    advised = msgspec.structs.replace(found, recommendation=recommendation)
    return render(reports_content([advised], lambda *_: snippet), "markdown")


def csv(*reports: Report) -> str:
    return render(reports_content(reports, lambda *_: ""), "csv")


def table_rows(found: Report) -> dict[str, TableRow]:
    """Each row of the table, the last of those of one measurement, by the measurement's id."""
    ids = [line.row.measurement.id for members in lines(found).values() for line in members]
    return dict(zip(ids, table_of(found).rows, strict=True))


def table_of(found: Report) -> Table:
    table = report_table(found)
    assert table is not None
    return table


def headings(found: Report) -> list[str]:
    """Of the Markdown table."""
    head = next(line for line in markdown(found).splitlines() if line.startswith("| #"))
    return [text.strip() for text in head.strip("|").split("|")]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_terminal_shows_every_row_figure_and_reason_at_any_width(width: int) -> None:
    shown = terminal(ladder_report(), width)
    flat = " ".join(shown.split())
    for words in (
        "vae inference",
        "NVIDIA Test GPU",
        "torch 2.13.0",
        "batch size 8",
        "baseline",
        "the ladder:",
        "alone:",
    ):
        assert words in shown
    for words in ("#10 oom: tried to allocate 3.00 GiB", "skipped precision=tf32: needs compute capability 8.0"):
        assert words in flat
    more = (*(("600 MiB",) if width >= 80 else ()), *(("60.00", "25.0") if width >= 100 else ()))
    for figure in ("80.0", "133", "1.67x", "wrong", *more):
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.])", shown), figure
    assert CODE in shown  # never broken: it is there to be copied
    assert all(len(line) <= width for line in shown.splitlines() if CODE not in line)


def test_the_closing_block_says_what_how_much_versus_what_and_why() -> None:
    shown = " ".join(terminal(ladder_report()).split())
    assert "Recommended for fps: precision=bf16-autocast, channels_last=on, compile=default (#7)" in shown
    assert re.search(r"Speedup 2\.4\dx \(2\.4\d to 2\.4\d\) versus baseline over 5 rounds of fresh processes\.", shown)
    assert "pays off after" in shown


def test_ladder_rungs_stand_under_one_another() -> None:
    shown = terminal(ladder_report())
    rungs = [line for line in shown.splitlines() if re.match(r"\s*\d+ \+ ", line)]
    assert [re.split(r"\s{2,}", line.strip())[0] for line in rungs[:2]] == [
        "3 + precision=bf16-autocast",
        "6 + channels_last=on",
    ]
    assert "(recommended)" in rungs[2]


def test_colours_only_on_terminals() -> None:
    assert "\x1b[" in terminal(ladder_report(), colour=True)
    assert "\x1b[" not in terminal(ladder_report(), colour=False)


def test_what_was_not_measured_is_a_dash_and_never_zero() -> None:
    cells = table_rows(ladder_report())["oom"].cells
    shown = {metric.name for metric in all_metrics().values() if metric.heading}
    assert set(cells) == {"number", "configuration", "status"} | shown
    assert {cells[name] for name in shown} == {"-"}


def test_a_column_that_no_row_has_a_value_for_is_left_out() -> None:
    used = Utilization(
        gpu_utilization_percent=Reading(mean=87.4, min=80, max=90, count=9),
        power_watts=Reading(mean=312.0, min=300, max=320, count=9),
        energy_per_item_joules=1.25,
    )
    plain, fast = report(baseline(), row("x", 0.05)), row("x", 0.05)
    watched = report(baseline(), msgspec.structs.replace(fast, utilization=used))
    added = {"GPU %", "power W", "J/item"}
    assert not added & set(headings(plain))
    assert set(headings(watched)) - set(headings(plain)) == added
    cells = table_rows(watched)["x"].cells
    assert [cells[name] for name in ("gpu_utilization", "power", "energy_per_item")] == ["87", "312", "1.25"]
    assert table_rows(watched)["baseline"].cells["power"] == "-"
    assert "power W" in terminal(watched, 160)
    assert "power W" not in terminal(watched, 120)
    first, second = standard_csv.DictReader(io.StringIO(csv(watched)))
    assert (first["power_watts"], second["power_watts"]) == ("", "312.0")
    assert "energy_per_item_joules" in csv(plain).splitlines()[0]


def test_flags_mark_a_row_and_are_explained() -> None:
    found = report(baseline(), row("x", 0.05, {"compile": "default"}, flags=["unsteady: 4.0 s of warm-up"]))
    assert "ok*" in terminal(found)
    assert [each.cells["status"] for each in report_table(found).rows] == ["ok", "ok*"]
    assert remarks(found) == ["ok*: unsteady: 4.0 s of warm-up (#2)"]


def test_a_speedup_says_what_it_rests_on() -> None:
    found = table_rows(ladder_report())
    assert found["bf16"].cells["speedup"] == "~1.67x"  # one process
    assert found["bf16"].cells["speedup_low"] == "-"
    assert re.fullmatch(r"2\.4\dx", found["all"].cells["speedup"])
    assert re.fullmatch(r"2\.4\d-2\.4\d \(5\)", found["all"].cells["speedup_low"])
    assert remarks(ladder_report())[0].startswith("~: single process; do not compare FPS across rows.")


def test_one_kind_of_flag_on_many_rows_is_one_remark() -> None:
    rows = [row(f"r{index}", 0.05, {"threads": index}, flags=[f"stopped_by_time: {index} of 10"]) for index in range(3)]
    assert remarks(report(baseline(), *rows))[1:] == ["ok*: stopped_by_time (#2, #3, #4)"]


def test_the_reason_of_a_row_that_is_ok_is_shown() -> None:
    assert remarks(report(baseline(), row("x", 0.05, reason="Measured twice.")))[1:] == ["#2: Measured twice"]


def test_a_skip_is_named_once() -> None:
    skip = row("s", None, {"compile": "cuda"}, status="skipped", reason="compile=cuda needs a CUDA device.")
    other = row("o", None, {"compile": "x"}, status="skipped", reason="needs luck.")
    assert remarks(report(baseline(), skip, other)) == [
        "skipped: compile=cuda needs a CUDA device",
        "skipped compile=x: needs luck",
    ]


def test_an_unfinished_run_a_sweep_and_notes_are_remarked() -> None:
    found = msgspec.structs.replace(
        report(baseline(), finished=False),
        notes=["The laptop is on battery."],
        sweep=Summary(toggle="batch_size", knee=4, largest_fitting=8, reason="batch_size = 4 is the knee."),
    )
    plan = msgspec.structs.replace(found.plan, configurations=["baseline", "a", "b"])
    found = msgspec.structs.replace(found, plan=plan)
    assert remarks(found) == [
        "The laptop is on battery.",
        "batch_size = 4 is the knee.",
        "The run was cut off: 2 configurations not measured. Continue it with --resume.",
    ]


def test_an_empty_report_renders_everywhere() -> None:
    assert "vae inference" in on_screen(reports_content([report()], lambda *_: ""))
    assert markdown(report()).startswith("## vae inference")
    assert csv(report()).count("\n") == 1


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_shows_as_text_on_the_terminal(text: str) -> None:
    found = hostile_report(text)
    shown = terminal(found, width=300)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    if text.startswith("["):
        assert text in shown  # markup was not read as markup
    coloured = terminal(found, width=300, colour=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == shown  # only our own styles came on top; no link either


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_keeps_the_markdown_table_whole(text: str) -> None:
    shown = markdown(hostile_report(text), chosen(hostile_report(text)), snippet=f"x = 1\n```\n{text}")
    assert "<script" not in shown.split("````")[0]
    assert "\x1b" not in shown
    table = [line for line in shown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {len(headings(hostile_report(text))) + 1}
    assert len(table) >= 5
    assert shown.rstrip().endswith("````")


def test_markdown_escapes() -> None:
    assert escape("a|b `c` *d* [e](f) <g> & \\") == r"a\|b \`c\` \*d\* \[e\](f) &lt;g&gt; &amp; \\"


def test_markdown_shows_the_same_cells_as_the_terminal() -> None:
    found = ladder_report()
    shown = markdown(found, chosen(found), snippet="x = 1")
    table = table_of(found)
    assert len(table.rows) > 9
    for each in table.rows:
        assert all(escape(each.cells[column.key]) in shown for column in table.columns)
    assert "| ---: | --- |" in shown
    assert "**Recommended for fps:" in shown
    assert "```\nx = 1\n```" in shown


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_csv_is_one_inert_cell(text: str) -> None:
    found = hostile_report(text)
    table = list(standard_csv.reader(io.StringIO(csv(found))))
    assert len(table) == 1 + len(found.measurements)
    assert len({len(line) for line in table}) == 1
    for line in table:
        for cell in line:
            assert not cell.startswith(("=", "+", "@", "\t", "\r"))
            assert not re.match(r"-[^\d]", cell)
            assert "\x1b" not in cell


def test_csv_figures_are_plain_numbers() -> None:
    table = list(standard_csv.DictReader(io.StringIO(csv(ladder_report()))))
    first, failed = table[0], next(line for line in table if line["id"] == "oom")
    assert first["items_per_step"] == "8"
    assert float(first["fps"]) == pytest.approx(80, rel=0.001)
    assert first["peak_memory_bytes"] == str(1000 * 2**20)
    assert failed["fps"] == failed["latency_median_s"] == failed["speedup"] == ""


def test_csv_cells_that_would_be_formulas_get_an_apostrophe_and_numbers_do_not() -> None:
    found = report(baseline(), row("=cmd|' /C calc'!A0", 0.05, {"threads": -1, "p": " +1", "q": "-x"}))
    line = list(standard_csv.DictReader(io.StringIO(csv(found))))[1]
    assert line["id"] == "'=cmd|' /C calc'!A0"
    assert line["configuration.threads"] == "-1"
    assert line["configuration.p"] == "' +1"
    assert line["configuration.q"] == "'-x"


@pytest.mark.parametrize("text", [*HOSTILE, 'quote " and \\ backslash', "\x00\x7f\x1f", "😀", "", "a.b c"])
def test_a_profile_reads_back_as_it_was(text: str) -> None:
    found = report(baseline(), row(text or "x", 0.05, {text: text, "batch_size": 4}), name=text, reference=text)
    recommendation = chosen(found)
    read = tomllib.loads(profile(found, recommendation, f"{text}.json", "2026-01-02T03:04:05+00:00"))
    assert read["configuration"] == recommendation.configuration
    assert read["workload"]["name"] == text
    assert read["source"] == f"{text}.json"
    assert read["recommendation"]["speedup"] == recommendation.speedup
    assert read["created_at"] == "2026-01-02T03:04:05+00:00"


def test_a_profile_leaves_out_what_is_not_known_and_replaces_what_toml_cannot_hold() -> None:
    found = report(row("fast", 0.05))
    read = tomllib.loads(profile(found, chosen(found), "r.json", "2026"))
    assert "speedup" not in read["recommendation"]
    assert tomllib.loads(f"x = {toml(chr(0xD800))}")["x"] == "\ufffd"
    assert tomllib.loads(f"x = [{toml(True)}, {toml(1e300)}, {toml(-3)}]")["x"] == [True, 1e300, -3]


def test_the_card_is_named_with_what_tells_it_from_its_like() -> None:
    assert heading(report(baseline()))[1].startswith("NVIDIA Test GPU, GPU-0, 24.0 GiB")
