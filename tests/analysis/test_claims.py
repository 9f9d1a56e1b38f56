"""Verdicts on what guides claim, from planted rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from gpubench.analysis.claims import UNCERTAIN, Finding, findings
from gpubench.analysis.guides import Claim, Guide, Measure, all_guides, chosen, names
from gpubench.errors import GpubenchError
from gpubench.render.claims_document import claimed, claims_content, documents
from gpubench.render.formats import render
from gpubench.report.model import Report
from gpubench.search import presets
from gpubench.toggles import bundled_toggles, get, parse_value, with_own
from gpubench.workloads.catalog import SUMMARIES, TOGGLES, default_parameters
from gpubench.workloads.loader import load
from tests.reports import CPU, alone, baseline, report, row

BF16 = {"precision": "bf16-autocast"}
DEVICE = msgspec.structs.replace(CPU, fast_dtypes=["float32", "bfloat16"])
FACTS: dict[str, Any] = {"convolution_dimensions": [2], "device": DEVICE, "parameters": {"task": "reconstruct"}}
STEADY = (0.0999, 0.1, 0.1001, 0.1, 0.1)


def claim(**fields: Any) -> Claim:
    given = {"id": "a", "technique": "bf16", "mode": "inference", **fields}
    return msgspec.convert({"measure": [{"workload": "vae", "on": BF16}], **given}, Claim)


def measured(speed: float, memory_mib: float = 1000, **fields: Any) -> Report:
    """A report of a baseline and a row that is so many times as fast, in five rounds."""
    return measured_in([each / speed for each in STEADY], memory_mib, **fields)


def measured_in(times: Sequence[float], memory_mib: float = 1000, **fields: Any) -> Report:
    """The same, of a row with those times."""
    found = row("bf16", times[0], BF16, roles=[alone("precision")], explore_s=times, memory_mib=memory_mib)
    return report(baseline(explore_s=STEADY), found, **{**FACTS, **fields})


def judge(asked: Claim, *reports: Report, kind: str = "cpu") -> Finding:
    guide = Guide(name="g", title="a guide", claim=[asked])
    (found,) = findings([(guide, asked)], [(f"{n}.json", each) for n, each in enumerate(reports)], kind)
    return found


@pytest.mark.parametrize(
    ("speed", "low", "high", "verdict"),
    [
        (1.25, 1.2, 1.3, "confirmed"),
        (1.04, 1.2, 1.3, "below"),
        (1.5, 1.2, 1.3, "above"),
        (0.82, 0.8, 0.8, "confirmed"),  # a single figure is rounded
        (0.7, 0.8, 0.8, "below"),
        (3.0, None, 8.0, "confirmed"),  # up to 8 times
        (1.0, None, 8.0, "below"),
    ],
)
def test_a_speed_up_is_held_against_what_is_claimed(speed: float, low: float | None, high: float, verdict: str) -> None:
    found = judge(claim(speedup_low=low, speedup_high=high), measured(speed))
    assert found.verdict == verdict
    assert found.speedup is not None and found.speedup.ratio == pytest.approx(speed, rel=0.01)
    assert (found.on, found.off, found.report) == ("bf16", "baseline", "0.json")


@pytest.mark.parametrize(
    ("expects", "speed", "memory", "verdict"),
    [
        ("faster", 1.1, 1000, "confirmed"),
        ("faster", 1.0, 1000, "below"),
        ("same_speed", 1.0, 1000, "confirmed"),
        ("same_speed", 0.8, 1000, "below"),
        ("less_memory", 0.5, 900, "confirmed"),
        ("less_memory", 2.0, 990, "below"),  # within what equal peaks differ
    ],
)
def test_a_claim_without_a_figure_says_what_it_expects(expects: str, speed: float, memory: float, verdict: str) -> None:
    assert judge(claim(expects=expects), measured(speed, memory)).verdict == verdict


@pytest.mark.parametrize(("memory", "verdict"), [(500, "confirmed"), (700, "below"), (100, "above")])
def test_memory_is_the_share_that_is_saved(memory: float, verdict: str) -> None:
    found = judge(claim(memory_low=0.4, memory_high=0.6), measured(1.0, memory))
    assert (found.verdict, found.memory_saved) == (verdict, pytest.approx(1 - memory / 1000))


def test_an_interval_that_holds_no_gain_as_well_confirms_nothing() -> None:
    wide = [0.1, 0.07, 0.12, 0.06, 0.09]
    found = judge(claim(speedup_low=1.2, speedup_high=1.3), measured_in(wide))
    assert found.speedup is not None and found.speedup.low < 1 < 1.2 < found.speedup.high
    assert (found.verdict, found.reason) == ("not measured", UNCERTAIN)


def test_of_speed_and_memory_the_worse_counts() -> None:
    both = claim(speedup_low=1.5, speedup_high=2.0, memory_low=0.5, memory_high=0.5)
    assert judge(both, measured(1.7, 500)).verdict == "confirmed"
    assert judge(both, measured(1.7, 800)).verdict == "below"
    assert judge(both, measured(1.2, 500)).verdict == "below"


def test_the_other_side_may_be_the_baseline() -> None:
    slow = claim(speedup_low=1.05, speedup_high=1.1, measure=[{"workload": "vae", "off": BF16}])
    assert judge(slow, measured(1 / 1.07)).verdict == "confirmed"


def test_every_claim_has_a_finding_and_what_cannot_be_measured_says_why() -> None:
    tensor_cores = claim(measure=[{"workload": "vae", "on": {"precision": "tf32"}}], expects="faster")
    assert judge(tensor_cores, measured(1.0)).reason.startswith("precision=tf32 needs a CUDA device")
    both = claim(mode="both", expects="faster")
    found = findings([(Guide(name="g", title="t", claim=[both]), both)], [("r.json", measured(2.0))], "cpu")
    assert [(each.mode, each.verdict) for each in found] == [("inference", "confirmed"), ("training", "not measured")]
    assert found[1].reason == "No report of vae training was given."
    nothing = judge(claim(measure=[], unmeasured="It is advice."), measured(1.0))
    assert (nothing.verdict, nothing.reason) == ("not measurable here", "It is advice.")
    elsewhere = claim(measure=[{"workload": "vae", "on": BF16, "devices": ["cuda"]}])
    assert judge(elsewhere).reason == "It is measured on a CUDA device."
    unknown = claim(measure=[{"workload": "vae", "on": {"precison": "tf32"}}])
    assert judge(unknown, measured(1.0)).reason == "Unknown toggle 'precison'."


def test_other_parameters_are_another_subject() -> None:
    decode = claim(expects="faster", measure=[{"workload": "vae", "on": BF16, "parameters": {"task": "decode"}}])
    assert judge(decode, measured(2.0)).verdict == "not measured"
    assert judge(claim(expects="faster"), measured(2.0, parameters={"task": "decode"})).verdict == "not measured"
    assert judge(decode, measured(2.0, parameters={"task": "decode"})).verdict == "confirmed"


def test_held_values_are_part_of_the_row() -> None:
    held = claim(expects="faster", measure=[{"workload": "vae", "on": BF16, "fix": {"channels_last": "on"}}])
    assert judge(held, measured(2.0)).verdict == "not measured"
    last = {"channels_last": "on"}
    rows = [
        row("last", 0.1, last, explore_s=STEADY),
        row("both", 0.05, {**BF16, **last}, explore_s=[each / 2 for each in STEADY]),
    ]
    found = judge(held, report(baseline(0.2), *rows, **FACTS))
    assert (found.verdict, found.on, found.off) == ("confirmed", "both", "last")


def test_a_row_that_is_wrong_measures_nothing() -> None:
    wrong = row("bf16", 0.01, BF16, status="wrong", reason="relative error 0.5 is above 0.02", passed=False)
    found = judge(claim(expects="faster"), report(baseline(), wrong, **FACTS))
    assert (found.verdict, found.speedup) == ("not measurable here", None)
    assert "relative error 0.5 is above 0.02" in found.reason
    right = claim(measure=[{"workload": "vae", "on": BF16, "metric": "quality", "expects": "right_outputs"}])
    assert judge(right, report(baseline(), wrong, **FACTS)).verdict == "below"
    assert judge(right, measured(1.0)).verdict == "confirmed"


def test_a_metric_may_be_what_is_claimed() -> None:
    way = {"workload": "vae", "on": BF16, "metric": "compile_time"}
    quick = row("bf16", 0.1, BF16, compile_s=0.1)
    found = judge(claim(measure=[{**way, "expects": "less"}]), report(baseline(), quick, **FACTS))
    assert (found.verdict, found.value, found.versus) == ("confirmed", 0.1, 0.2)
    assert judge(claim(measure=[{**way, "at_least": 0.5}]), report(baseline(), quick, **FACTS)).verdict == "below"
    missing = claim(measure=[{**way, "metric": "gpu_utilization"}])
    assert judge(missing, measured(1.0)).reason == "The row has no gpu utilization."


def test_the_newest_report_that_has_it_counts() -> None:
    old = measured(1.25)
    new = measured(1.0, created_at="2026-05-05T00:00:00+00:00")
    empty = report(baseline(), created_at="2026-06-06T00:00:00+00:00", **FACTS)
    found = judge(claim(speedup_low=1.2, speedup_high=1.3), old, new, empty)
    assert (found.verdict, found.report) == ("below", "1.json")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"speedup_low": 1.1, "speedup_high": 1.3}, "1.1-1.3x"),
        ({"speedup_high": 8.0}, "up to 8x"),
        ({"speedup_low": 0.8, "speedup_high": 0.8, "memory_low": 0.4, "memory_high": 0.6}, "0.8x, 40-60 % less memory"),
        ({"memory_low": 0.5, "memory_high": 0.5}, "50 % less memory"),
        ({"expects": "same_speed"}, "costs nothing"),
        ({}, "no figure"),
    ],
)
def test_what_is_claimed_is_said_in_few_words(fields: dict[str, Any], text: str) -> None:
    assert claimed(claim(**fields)) == text


def test_the_table_has_every_row_with_mistakes_and_reasons() -> None:
    known = claim(speedup_low=1.2, speedup_high=1.3, correction="It is another card.")
    advice = claim(id="b", technique="advice", measure=[], unmeasured="It is advice.")
    guide = Guide(name="g", title="a guide", claim=[known, advice])
    found = findings([(guide, known), (guide, advice)], [("r.json", measured(1.25))], "cpu")
    table, end = documents(found, "a processor")
    assert [cells.cells["verdict"] for cells in table.rows] == ["confirmed", "not measurable here"]
    assert table.rows[0].cells["measured"] == "1.25x (1.25-1.25, 5)"
    assert [note.text for note in table.notes] == [
        "bf16: a known mistake of the guide: It is another card.", "advice: It is advice.",
    ]  # fmt: skip
    assert end.subtitle[0] == "2 claims: 1 confirmed, 1 not measurable here."
    data = msgspec.json.decode(render(claims_content({"a processor": found}), "json"))
    assert [each["verdict"] for each in data] == ["confirmed", "not measurable here"]
    assert data[0]["speedup_low"] <= 1.2501 <= data[0]["speedup_high"] + 0.001 and data[1]["speedup"] is None
    assert "| bf16 | inference |" in render(claims_content({"a processor": found}), "markdown")


# ----- what ships


def test_the_guides_have_65_claims() -> None:
    assert {name: len(guide.claim) for name, guide in all_guides().items()} == {
        "bf16-guide": 10, "cytodl": 19, "gpu-guide": 7, "mmrec-cpu": 10, "vae-guide": 19,
    }  # fmt: skip
    for guide in all_guides().values():
        assert len({each.id for each in guide.claim}) == len(guide.claim)
        for each in guide.claim:
            assert bool(each.measure) != bool(each.unmeasured), each.id
            says = each.speedup_high or each.memory_high or each.expects or each.unmeasured
            assert says or all(way.metric for way in each.measure), each.id


WAYS = [(f"{guide.name}/{each.id}", way) for guide, each in chosen(None) for way in each.measure]


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_what_measures_a_claim_is_known_here(name: str, way: Measure) -> None:
    assert way.workload in SUMMARIES
    workload = load(way.workload, "tiny", {key: str(value) for key, value in way.parameters.items()}).workload
    with with_own(workload.toggles):
        for values in (way.on, way.off, way.fix):
            for toggle, value in values.items():
                assert value == presets.OFFERED or parse_value(get(toggle), str(value)) == value
                assert toggle in bundled_toggles() or toggle in TOGGLES[way.workload]


def test_claims_are_chosen_by_guide_or_workload() -> None:
    assert {guide.name for guide, _ in chosen("cytodl")} == {"cytodl"}
    assert {way.workload for _, each in chosen("vit_mae") for way in each.measure} >= {"vit_mae"}
    assert "unet3d" in names()
    with pytest.raises(GpubenchError, match="Unknown guide or workload 'cytdl'"):
        chosen("cytdl")


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_parameters_that_a_workload_has_unasked_are_known_without_torch(name: str) -> None:
    asked = {key: value for key, value in load(name, "tiny").parameters.items() if value is not None}
    assert default_parameters(name) == asked
