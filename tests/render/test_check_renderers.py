"""A check on the terminal, as Markdown, JUnit XML and annotations; with names that try to break out of each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from xml.etree import ElementTree

import msgspec
import pytest
import typer
from msgspec.structs import replace

from gpubench.cli.ab import ab
from gpubench.regression.comparison import NamedReport, check
from gpubench.regression.verdicts import Check, Limits
from gpubench.render.check_document import LONGEST as MOST_ROWS
from gpubench.render.check_document import check_document, checks_content
from gpubench.render.formats import render
from gpubench.render.formats.github import MOST
from gpubench.render.formats.markdown import LONGEST
from gpubench.report.model import Report
from tests.render.screen import on_screen
from tests.reports import CPU, HOSTILE, ROLES, alone, baseline, hostile_report, report, row

STEADY = [0.1, 0.1001, 0.0999, 0.1, 0.1, 0.1]
EVIL = (
    *HOSTILE, "::error::x", "##[error]x", "]]>", "</failure>", "%0A::error::x", "a\r\nb", "</details>", "\x00",
    "\ufffe\uffff", "# x", "--- ", "@everyone", "https://example.org/a_b_c", "#1 !2",
    "_https://example.org", "1www.example.org",
)  # fmt: skip


def compared(current: Report, before: Report) -> Check:
    return check(NamedReport("new.json", current), NamedReport("old.json", before), Limits())


def times(step_s: float) -> list[float]:
    return [value * step_s / 0.1 for value in STEADY]


def rows(slow: float = 1.0, better: float = 1.0, name: str = "slow") -> Report:
    return report(
        baseline(0.1, explore_s=times(0.1)),
        row(name, 0.1, {"channels_last": "on"}, roles=[alone("channels_last")], explore_s=times(0.1 * slow)),
        row("better", 0.1, {"precision": "bf16-autocast"}, roles=[alone("precision")], explore_s=times(0.1 * better)),
        row("single", 0.1, {"compile": "default"}, roles=[ROLES["grid"]], explore_s=[0.1]),
    )


@pytest.fixture
def mixed() -> Check:
    """One row regressed, one improved, two unchanged."""
    return compared(rows(1.2, 0.8), rows())


def terminal(found: Check, width: int = 140) -> str:
    return on_screen(checks_content([found]), width)


def check_markdown(checks: Sequence[Check]) -> str:
    return render(checks_content(checks), "markdown")


def junit(checks: Sequence[Check], inconclusive_ok: bool = False) -> str:
    return render(checks_content(checks, inconclusive_ok), "junit")


def github(checks: Sequence[Check]) -> str:
    return render(checks_content(checks), "github")


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_terminal_shows_the_worst_first(mixed: Check, width: int) -> None:
    shown = terminal(mixed, width)
    assert "vae inference on NVIDIA Test GPU: regressed" in " ".join(shown.split())
    assert "new.json against old.json, measured in two runs" in " ".join(shown.split())
    verdicts = [
        line.split()[0] for line in shown.splitlines() if line.startswith(("regressed ", "improved ", "unchanged "))
    ]
    assert verdicts == ["regressed", "improved", "unchanged", "unchanged"]
    assert "-16.7%" in shown
    assert all(len(line) <= width for line in shown.splitlines())


def test_an_improvement_is_not_hidden_behind_a_regression(mixed: Check) -> None:
    assert "better: FPS improved: Time per item -20.0%" in " ".join(terminal(mixed).split())


def test_markdown_folds_what_did_not_change(mixed: Check) -> None:
    shown = check_markdown([mixed])
    before, _, folded = shown.partition("<details>")
    assert "| regressed | slow |" in before
    assert "| improved | better |" in before
    assert "| unchanged | baseline |" in folded
    assert "2 rows unchanged" in folded
    assert before.index("| regressed") < before.index("| improved")


def test_a_long_comment_is_cut_where_github_would_refuse_it() -> None:
    many = [
        row(f"row-{index}-{'x' * 200}", 0.1, {"batch_size": index}, roles=[ROLES["grid"]], explore_s=times(0.1 * slow))
        for slow in (1.0,)
        for index in range(400)
    ]
    shown = check_markdown([compared(report(baseline(0.1), *many), report(baseline(0.1), *many))])
    assert LONGEST - 1000 < len(shown) < 65_000
    assert shown.count("<details>") == shown.count("</details>")
    assert "Cut off" in shown


def test_junit_is_xml_with_a_case_a_row(mixed: Check) -> None:
    suite = ElementTree.fromstring(junit([mixed]))[0]
    cases = {case.get("name"): case for case in suite}
    assert set(cases) == {"baseline", "slow", "better", "single"}
    failure = cases["slow"].find("failure")
    assert failure is not None and "FPS regressed" in (failure.get("message") or "")
    assert len(cases["better"]) == 0
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "0")


def test_junit_of_what_could_not_be_told() -> None:
    noisy = [0.1, 0.12, 0.09, 0.11, 0.1, 0.08]
    before = report(baseline(0.1, explore_s=noisy))
    found = compared(before, before)
    assert found.verdict == "inconclusive"
    assert ElementTree.fromstring(junit([found])).find(".//error") is not None
    allowed = ElementTree.fromstring(junit([found], inconclusive_ok=True))
    assert allowed.find(".//error") is None
    assert allowed.find(".//skipped") is not None


def test_what_could_not_be_told_is_one_sentence_for_all_rows_but_in_junit() -> None:
    before = report(baseline(0.1, explore_s=[0.1, 0.12, 0.09, 0.11, 0.1, 0.08]))
    found = compared(before, before)
    for text in (terminal(found), check_markdown([found]), github([found])):
        flat = " ".join(text.split())
        assert "Inconclusive: FPS in 1 row (smallest detectable slowdown" in flat
        assert "baseline: FPS inconclusive" not in flat
    assert "baseline: FPS inconclusive: Time per item" in junit([found])


@pytest.mark.parametrize("session", [None, "s"])
def test_what_is_advised_is_not_what_was_just_done(session: str | None) -> None:
    slow, fast = [0.1, 0.12, 0.09, 0.11, 0.1, 0.08], [0.1, 0.09, 0.12, 0.1, 0.08, 0.11]
    sides = [
        msgspec.structs.replace(report(baseline(0.1, explore_s=one), device=CPU), session=session)
        for one in (slow, fast)
    ]
    found = compared(*sides)
    assert found.verdict == "inconclusive"
    shown = " ".join(terminal(found).split())
    assert ("gpubench ab" in shown) == (session is None)
    assert ("--time-limit" in shown) == (session is not None)


def test_where_two_stored_runs_cannot_tell_one_line_gives_the_command_that_can() -> None:
    noisy = [0.1, 0.14, 0.08, 0.12, 0.1, 0.07]
    facts = {"mode": "training", "parameters": {"task": "re construct"}}
    rows = (baseline(0.1, explore_s=noisy), row("r", 0.1, {"threads": 2}, explore_s=noisy[::-1]))
    for reference, digest, older in (("vae", None, "PYTHON"), ("my_model.py:make", "abc", "REVISION")):
        sides = [report(*rows, device=CPU, reference=reference, source_hash=digest, **facts) for _ in range(2)]
        sides = [replace(side, plan=replace(side.plan, fix={"batch_size": 4})) for side in sides]
        notes = [note.text for note in check_document(compared(*sides)).notes]
        (line,) = [text for text in notes if text.startswith("Inconclusive:")]
        assert line.startswith("Inconclusive: FPS in 2 rows (smallest detectable slowdown ")
        assert ", limit 30.0%), latency p95 in 2 rows (" in line
        command = shlex.split(line.partition("measure both sides together: ")[2])
        assert command == [
            "gpubench", "ab", reference, "--mode", "training", "--size", "tiny", "--device", "cpu",
            "--param", "task=re construct", "--fix", "batch_size=4", "--set", "threads=2", "--a", older,
        ]  # fmt: skip
        assert "gpubench ab" in check_markdown([compared(*sides)])
    app = typer.Typer()
    app.command()(ab)
    known = {option for parameter in typer.main.get_command(app).params for option in parameter.opts}
    assert {word for word in command if word.startswith("--")} <= known


def test_of_very_many_rows_the_worst_are_shown_and_the_rest_counted() -> None:
    def many(slow: float) -> Report:
        found = [
            row(f"row-{index}", 0.1, {"batch_size": index}, roles=[ROLES["grid"]], explore_s=times(0.1 * speed))
            for index in range(MOST_ROWS + 50)
            for speed in [slow if index == MOST_ROWS + 40 else 1.0]
        ]
        return report(baseline(0.1, explore_s=times(0.1)), *found)

    shown = " ".join(terminal(compared(many(1.3), many(1.0))).split())
    assert f"row-{MOST_ROWS + 40}" in shown
    assert "... and 51 more rows, none worse; --format json shows all." in shown


def test_a_narrow_terminal_still_names_the_rows(mixed: Check) -> None:
    shown = terminal(mixed, 30)
    assert all(any(name in line for line in shown.splitlines()) for name in ("baseline", "slow", "better", "single"))


def test_what_cannot_be_compared_is_told_by_every_renderer() -> None:
    other = msgspec.structs.replace(rows(), environment=msgspec.structs.replace(rows().environment, torch="2.14.0"))
    found = compared(other, rows())
    for text in (terminal(found), check_markdown([found]), junit([found]), github([found])):
        flat = " ".join(text.split())
        assert "torch: 2.13.0 against 2.14.0" in flat
        assert "--allow-different torch" in flat
    assert ElementTree.fromstring(junit([found])).find(".//error") is not None
    assert github([found]).startswith("::error title=")


def test_annotations_are_one_line_each(mixed: Check) -> None:
    lines = github([mixed]).splitlines()
    assert lines[0].startswith("::error title=vae inference::slow: FPS regressed: ")
    assert any(line.startswith("::notice title=vae inference::better: FPS improved: ") for line in lines)
    assert not lines[-1].startswith("::")
    assert "%25" in lines[0]  # a percent sign begins an escape there


def test_no_more_annotations_than_github_shows() -> None:
    def many(step_s: float) -> Report:
        found = [
            row(f"row-{index}", 0.1, {"batch_size": index}, roles=[ROLES["grid"]], explore_s=times(step_s))
            for index in range(30)
        ]
        return report(baseline(0.1), *found)

    shown = [line for line in github([compared(many(0.2), many(0.1))]).splitlines() if line.startswith("::error")]
    assert len(shown) == MOST + 1
    assert re.search(r"\d+ more of this kind", shown[-1])


def test_annotations_are_counted_over_all_checks() -> None:
    """GitHub's limit is for a step."""

    def many(step_s: float) -> Report:
        found = [
            row(f"row-{index}", 0.1, {"batch_size": index}, roles=[ROLES["grid"]], explore_s=times(step_s))
            for index in range(6)
        ]
        return report(baseline(0.1), *found)

    shown = github([compared(many(0.2), many(0.1))] * 3).splitlines()
    assert sum(line.startswith("::error") for line in shown) == MOST + 1


@pytest.mark.parametrize("text", EVIL)
def test_hostile_names_break_out_of_nothing(text: str) -> None:
    before, after = hostile_report(text), hostile_report(text)
    slow = [
        msgspec.structs.replace(one, status="failed", reason=text) if one.id == text else one
        for one in after.measurements
    ]
    found = compared(msgspec.structs.replace(after, measurements=slow), before)
    assert found.verdict == "regressed"
    found = msgspec.structs.replace(found, current=text, baseline=text, notes=[text], differences=[f"torch: {text}"])

    shown = terminal(found)
    assert "\x1b" not in shown and "\x00" not in shown
    xml = junit([found])
    root = ElementTree.fromstring(xml)
    assert len(list(root.iter("testcase"))) == len(found.rows)
    commands = [line for line in github([found]).splitlines() if line.startswith("::") or "##[" in line]
    assert all(re.match(r"::(error|warning|notice) title=[^:]*::", line) for line in commands)
    assert [line.partition(" ")[0] for line in commands] == ["::error", "::warning"]
    markdown = check_markdown([found])
    assert "<script>" not in markdown
    assert not re.search(r"[@#!]\w|https?:|www\.|\w@\w", markdown.replace("row", "")), markdown
    assert not re.search(r"^- (#+ |---)", markdown, re.MULTILINE)
    assert markdown.count("<details>") == markdown.count("</details>")
    for line in markdown.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 9
