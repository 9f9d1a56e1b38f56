from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

import msgspec
import pytest

from gpubench.analysis.ranking import rank
from gpubench.analysis.recommendation import Advice, recommend
from gpubench.report.model import Measurement, Recommendation, Report, Round
from tests.reports import BASELINE, CPU, GPU, MIB, ROLES, alone, baseline, ladder_report, report, row, rung

FAST = {"precision": "bf16-autocast"}
FASTER = {"precision": "bf16-autocast", "compile": "default"}


def best(found: Report, **options: object) -> Recommendation:
    advice = recommend(found, options.pop("objective", "fps"), **options)  # type: ignore[arg-type]
    assert advice.recommendation is not None, advice.reasons
    return advice.recommendation


def text(advice: Advice | Recommendation) -> str:
    return " ".join(advice.reasons)


def test_the_fastest_valid_row_wins_and_says_versus_what() -> None:
    found = best(report(baseline(0.1), row("fast", 0.06, FAST), row("faster", 0.04, FASTER)))
    assert found.id == "faster"
    assert found.versus == "baseline"
    assert found.speedup == pytest.approx(2.5)
    assert (found.speedup_low, found.speedup_high) == (None, None)  # of one process each
    assert found.tied_with == []
    assert "faster" in found.reasons[0]


@pytest.mark.parametrize(
    "status", ["wrong", "not_effective", "unproven", "crashed", "failed", "timeout", "oom", "skipped"]
)
def test_an_invalid_row_never_wins_though_it_is_fastest(status: str) -> None:
    advice = recommend(
        report(baseline(), row("fast", 0.06, FAST), row("bad", 0.001, FASTER, status=status, reason="planted")), "fps"
    )
    assert advice.recommendation.id == "fast"
    assert advice.excluded["bad"] == f"{status}: planted"
    assert ("skipped" if status == "skipped" else f"1 {status} (bad)") in text(advice)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"passed": False}, "outputs are wrong: relative error 0.5 is above 0.02"),
        ({"passed": None}, "outputs were not checked: no reference was made"),
        ({"quality": False}, "outputs were not checked: no comparison was recorded"),
        ({"flags": ["unsteady"]}, "had not settled"),
        ({"flags": ["contaminated: 1 process"]}, "others used the machine while it was measured (contaminated: 1"),
        ({"flags": ["swapped: 3 pages"]}, "being swapped while it was measured (swapped: 3 pages)"),
        ({"evidence": [("compile", "default", False)]}, "compile=default took no effect: as planted"),
    ],
)
def test_an_ok_row_that_cannot_be_relied_on_is_left_out_with_the_reason(options: dict, why: str) -> None:
    advice = recommend(report(baseline(), row("bad", 0.001, FASTER, **options)), "fps")
    assert advice.recommendation.id == "baseline"
    assert why in advice.excluded["bad"]
    assert why in text(advice)


def test_several_fresh_processes_make_up_for_one_that_did_not_settle() -> None:
    rows = [baseline(0.1, runoff_s=[0.1, 0.101, 0.1], flags=["unsteady: 4 s"])]
    rows += [row("fast", 0.05, FAST, runoff_s=[0.05, 0.051, 0.05], flags=["unsteady: 4 s"])]
    found = best(report(*rows))
    assert found.id == "fast"
    assert found.speedup == pytest.approx(2, rel=0.01)
    foreign = row("fast", 0.05, FAST, runoff_s=[0.05, 0.051, 0.05], flags=["contaminated: 1 process"])
    assert best(report(rows[0], foreign)).id == "baseline"


def test_a_flag_gates_where_half_of_the_processes_behind_the_figure_carry_it() -> None:
    def fast(*flagged: int) -> Measurement:
        marks = [["contaminated: 1 process"] if index in flagged else [] for index in range(4)]
        return row("fast", 0.05, FAST, runoff_s=[0.05] * 3, flags=["contaminated: some"], round_flags=marks)

    first = baseline(0.1, runoff_s=[0.1] * 3)
    assert best(report(first, fast(0))).id == "fast"  # only while exploring: the figure is from the runoff
    assert best(report(first, fast(1))).id == "fast"
    assert best(report(first, fast(1, 2))).id == "baseline"


def test_flags_that_do_not_gate_are_said() -> None:
    found = best(report(baseline(), row("fast", 0.05, FAST, flags=["host_bound: 40 % of the step"])))
    assert found.id == "fast"
    assert "so the figure depends on this CPU too (host_bound: 40 % of the step)" in text(found)


def test_a_choice_that_the_duel_shows_to_be_slower_is_dropped() -> None:
    rows = [
        baseline(0.1, runoff_s=[0.1] * 3, final_s=[0.1, 0.1002, 0.0999]),
        row("fast", 0.08, FAST, runoff_s=[0.08] * 3, final_s=[0.12, 0.121, 0.12]),
    ]
    found = best(report(*rows))
    assert found.id == "baseline"
    assert "precision=bf16-autocast (fast) was selected, but on fresh data it was no faster" in found.reasons[0]
    assert found.tied_with == []


def test_no_row_is_recommended_that_fresh_data_did_not_find_faster() -> None:
    rows = [
        baseline(0.1, runoff_s=[0.1] * 3, final_s=[0.1, 0.104, 0.1, 0.1]),
        row("fast", 0.09, FAST, runoff_s=[0.09] * 3, final_s=[0.103, 0.1, 0.103, 0.102]),
    ]
    found = best(report(*rows))
    assert (found.id, found.tied_with) == ("baseline", ["fast"])
    assert "it was no faster" in found.reasons[0]


def test_a_choice_slower_than_the_baseline_is_dropped_where_the_best_row_was_not_measured_again() -> None:
    rows = [
        baseline(0.1, runoff_s=[0.1] * 3, final_s=[0.1, 0.1, 0.1]),
        row("simple", 0.0901, FAST, runoff_s=[0.0901, 0.0898, 0.0904], final_s=[0.1005, 0.101, 0.1]),
        row("best", 0.09, FASTER, runoff_s=[0.09, 0.0903, 0.0896]),
    ]
    assert best(report(*rows)).id == "baseline"


@pytest.mark.parametrize(
    "state",
    [
        *({"status": status} for status in ("wrong", "not_effective", "unproven", "crashed", "failed", "timeout")),
        {"passed": False},
        {"flags": ["contaminated: 1 process"]},
        {"evidence": [("precision", "fp32", False)]},
    ],
)
def test_nothing_is_recommended_over_an_invalid_baseline(state: dict) -> None:
    advice = recommend(report(baseline(0.001, reason="planted", **state), row("slow", 0.1, FAST)), "fps")
    assert advice.recommendation is None
    assert advice.reasons[0].startswith("Nothing is recommended, because the baseline is not reliable: ")
    assert advice.excluded["baseline"]


def test_a_tie_that_only_the_final_shows_goes_to_the_simplest_of_its_rows() -> None:
    rows = [
        baseline(0.1, runoff_s=[0.1] * 3, final_s=[0.1, 0.1, 0.1, 0.1]),
        row("plain", 0.056, FAST, runoff_s=[0.056] * 3, final_s=[0.05, 0.052, 0.05, 0.051]),
        row("compiled", 0.05, FASTER, runoff_s=[0.05] * 3, final_s=[0.051, 0.05, 0.051, 0.05]),
    ]
    assert best(report(*(msgspec.structs.replace(each, rounds=each.rounds[:4]) for each in rows))).id == "compiled"
    found = best(report(*rows))
    assert (found.id, found.tied_with) == ("plain", ["compiled"])
    assert found.speedup == pytest.approx(1.97, abs=0.01)  # from the final, not the runoff


def test_the_detectable_effect_is_stated_with_the_rounds() -> None:
    rows = [
        baseline(0.1, final_s=[0.1, 0.101, 0.1, 0.099]),
        row("fast", 0.05, FAST, final_s=[0.05, 0.05, 0.0505, 0.05]),
    ]
    found = best(report(*rows))
    logs = [math.log(b / f) for b, f in zip([0.1, 0.101, 0.1, 0.099], [0.05, 0.05, 0.0505, 0.05], strict=True)]
    assert found.rounds == 4
    factor = 5.868  # noncentral t with 3 degrees of freedom
    assert found.detectable == pytest.approx(math.expm1(factor * statistics.stdev(logs) / 2), rel=1e-3)


def test_harmless_flags_do_not_exclude() -> None:
    assert best(report(baseline(), row("fast", 0.06, FAST, flags=["power cap"]))).id == "fast"


def test_the_baseline_needs_no_quality_but_must_not_be_wrong() -> None:
    assert best(report(baseline(quality=False))).id == "baseline"
    assert best(report(baseline(passed=None))).speedup == 1
    assert recommend(report(baseline(passed=False)), "fps").recommendation is None


def test_rows_within_the_noise_are_tied_and_the_fewest_changes_win() -> None:
    found = best(
        report(
            baseline(0.1),
            row("three", 0.0598, {**FASTER, "channels_last": "on"}),
            row("two", 0.0600, FASTER),
            row("one", 0.0605, FAST),
            row("far", 0.0700, {"compile": "default"}),
        )
    )
    assert found.id == "one"
    assert set(found.tied_with) == {"two", "three"}
    assert found.noise == pytest.approx(0.038, abs=0.002)  # exp(1.96 * 0.019) - 1
    assert "simplest of the 3 tied rows" in found.reasons[0]
    assert "three" in text(found)
    assert found.speedup == pytest.approx(0.1 / 0.0605)  # its own, not the best row's


def test_a_tie_in_changes_goes_to_the_least_memory() -> None:
    rows = [row("big", 0.0598, FAST, memory_mib=900), row("small", 0.06, {"channels_last": "on"}, memory_mib=400)]
    assert best(report(baseline(), *rows)).id == "small"


def test_a_tie_in_changes_goes_to_a_row_that_needs_no_compilation() -> None:
    rows = [row("eager", 0.06, FAST, memory_mib=900), row("compiled", 0.0598, {"compile": "default"}, memory_mib=400)]
    assert best(report(baseline(), *rows)).id == "eager"


def test_the_baseline_is_kept_where_nothing_beats_the_noise() -> None:
    found = best(report(baseline(0.1), row("fast", 0.098, FAST)))
    assert found.id == "baseline"
    assert found.tied_with == ["fast"]
    assert found.speedup == found.speedup_low == found.speedup_high == 1
    assert found.reasons[0].startswith("Keep the baseline")


def test_the_assumed_noise_is_stated_and_larger_under_the_systems_allocator_on_a_cpu() -> None:
    rows = [baseline(0.1), row("fast", 0.09, FAST)]
    on_gpu, on_cpu = best(report(*rows, device=GPU)), best(report(*rows, device=CPU))
    assert (on_gpu.id, on_cpu.id) == ("fast", "baseline")
    assert "Noise: assumed, because no configuration was measured in more than one process" in text(on_gpu)
    assert "1.9%" in text(on_gpu)
    assert "10.3%" in text(on_cpu)
    tuned = [msgspec.structs.replace(each, configuration={**each.configuration, "allocator": "tuned"}) for each in rows]
    assert best(report(*tuned, device=CPU)).id == "fast"


def test_measured_noise_replaces_the_assumed_one() -> None:
    quiet = [baseline(0.1, explore_s=[0.1000, 0.1002, 0.1001, 0.0999, 0.1]), row("fast", 0.0985, FAST)]
    assert best(report(*quiet)).id == "fast"
    assert "Noise: measured" in text(best(report(*quiet)))
    loud = [baseline(0.1, explore_s=[0.08, 0.12, 0.1, 0.09, 0.11]), row("fast", 0.09, FAST)]
    assert best(report(*loud)).id == "baseline"


def test_one_repeat_is_too_few_to_trust_but_widens_the_noise() -> None:
    found = best(report(baseline(0.1, explore_s=[0.1, 0.13]), row("fast", 0.08, FAST)))
    assert found.id == "baseline"
    assert "only 1 repeat" in text(found)


def test_a_control_is_no_row_to_recommend_and_no_repeat() -> None:
    """It shares the rounds of the baseline: what they differ by is not what processes differ by."""
    control = row("control", 0.05, roles=[ROLES["control"]], final_s=[0.05] * 6)
    found = best(report(baseline(0.1), control, row("fast", 0.08, FAST)))
    assert found.id == "fast"
    assert "control" not in found.tied_with
    assert "no configuration was measured in more than one process" in text(found)


def test_what_the_duel_tells_apart_is_not_tied_by_a_drift_between_phases() -> None:
    """The machine gets half as fast from exploring to the end of the final, for both alike."""
    drift = [1.1**index for index in range(1, 7)]
    rows = [
        baseline(0.1, final_s=[0.1 * value for value in drift]),
        row("fast", 0.075, FAST, final_s=[0.075 * value for value in drift]),
    ]
    found = best(report(*rows))
    assert (found.id, found.tied_with, found.rounds) == ("fast", [], 6)
    assert found.noise > math.log(0.1 / 0.075)  # exploring alone could not have told


def test_the_rows_own_intervals_count_where_they_are_wider() -> None:
    assert best(report(baseline(0.1), row("fast", 0.09, FAST))).id == "fast"
    assert best(report(baseline(0.1, noise=0.3), row("fast", 0.09, FAST, noise=0.3))).id == "baseline"


def winners_curse(seed: int, count: int = 12) -> tuple[Report, float]:
    """Rows that are all truly 1.25 times as fast; the best exploring figure is luck. The three luckiest race, and the
    winner of the runoff finals."""
    chance = random.Random(seed)

    def around(step_s: float) -> float:
        return step_s * chance.lognormvariate(0, 0.03)

    explored = sorted((around(0.08), index) for index in range(count))
    finalists = {index for _, index in explored[:3]}
    rows = [
        row(
            f"row{index}",
            step_s,
            {"threads": index},
            runoff_s=[around(0.08) for _ in range(3)] if index in finalists else (),
        )
        for step_s, index in explored
    ]
    first = baseline(0.1, runoff_s=[around(0.1) for _ in range(3)])
    chosen = best(report(first, *rows)).id
    final = [
        msgspec.structs.replace(one, rounds=[*one.rounds, *final_rounds(around, step_s)])
        for one, step_s in [(first, 0.1), *((one, 0.08) for one in rows if one.id == chosen)]
    ]
    known = {one.id: one for one in [first, *rows, *final]}
    return report(*known.values()), 0.1 / explored[0][0]


def final_rounds(around: Callable[[float], float], step_s: float) -> list[Round]:
    return row("x", step_s, final_s=[around(step_s) for _ in range(6)]).rounds[1:]


def test_the_winners_figure_is_from_fresh_data_and_not_overstated() -> None:
    fresh, flattered, covered = [], [], 0
    for seed in range(60):
        run, lucky = winners_curse(seed)
        found = best(run)
        fresh.append(found.speedup)
        flattered.append(lucky)
        covered += found.speedup_low <= 1.25 <= found.speedup_high
        assert "measured after selection" in text(found)
    assert sum(flattered) / 60 > 1.30  # the fault is there to be seen
    assert sum(fresh) / 60 == pytest.approx(1.25, abs=0.015)
    assert covered >= 0.88 * 60


def test_the_race_decides_the_winner() -> None:
    found = best(
        report(
            baseline(0.1, runoff_s=[0.1] * 4),
            row("lucky", 0.05, FAST, runoff_s=[0.070, 0.071, 0.069, 0.070]),
            row("steady", 0.06, FASTER, runoff_s=[0.060, 0.061, 0.060, 0.0605]),
        )
    )
    assert found.id == "steady"
    assert found.speedup == pytest.approx(0.1 / 0.0604, rel=0.01)


def test_a_row_that_did_not_race_cannot_win_by_its_exploring_figure() -> None:
    in_runoff = row("in_runoff", 0.0500, FAST, runoff_s=[0.06] * 4)
    found = best(report(baseline(0.1, runoff_s=[0.1] * 4), in_runoff, row("other", 0.0505, FASTER)))
    assert found.id == "in_runoff"
    assert found.speedup == pytest.approx(0.1 / 0.06)
    assert "not measured in the runoff: precision=bf16-autocast, compile=default (other)" in text(found)


def test_where_nothing_is_faster_the_baseline_is_kept() -> None:
    kept = 0
    for seed in range(80):
        chance = random.Random(seed)
        explored = sorted(0.1 * chance.lognormvariate(0, 0.02) for _ in range(12))
        rows = [
            row(
                f"row{index}",
                step_s,
                {"threads": index},
                runoff_s=[0.1 * chance.lognormvariate(0, 0.02) for _ in range(3)] if index < 2 else (),
            )
            for index, step_s in enumerate(explored)
        ]
        first = baseline(
            0.1 * chance.lognormvariate(0, 0.02), runoff_s=[0.1 * chance.lognormvariate(0, 0.02) for _ in range(3)]
        )
        kept += best(report(first, *rows)).id == "baseline"
    assert kept >= 0.92 * 80


def test_rounds_are_paired_so_that_drift_common_to_both_cancels() -> None:
    drift = [1.0, 1.3, 0.9, 1.2, 1.1]
    rows = [
        baseline(0.1, runoff_s=[0.1 * each for each in drift]),
        row("fast", 0.095, FAST, runoff_s=[0.095 * each * (1 + 0.001 * (i % 2)) for i, each in enumerate(drift)]),
    ]
    found = best(report(*rows))
    assert found.id == "fast"
    assert found.speedup_high / found.speedup_low < 1.01


def test_without_fresh_data_the_reasons_warn_of_the_winners_curse() -> None:
    assert "from exploring alone" in text(best(report(baseline(), row("fast", 0.05, FAST))))


def test_an_objective_that_did_not_race_is_ranked_by_exploring_and_says_so() -> None:
    rows = [
        baseline(0.1, runoff_s=[0.1] * 3, memory_mib=4000),
        row("fast", 0.05, FAST, runoff_s=[0.05] * 3, memory_mib=3000),
        row("faster", 0.04, FASTER, runoff_s=[0.04] * 3, memory_mib=5000),
        row("fits", 0.07, {"compile": "default"}, memory_mib=900),
    ]
    assert best(report(*rows)).id == "faster"
    limited = best(report(*rows), max_memory_bytes=1000 * MIB)
    assert limited.id == "fits"
    assert "from exploring alone" in text(limited)


def test_a_memory_limit_excludes_with_the_figures() -> None:
    rows = [
        baseline(memory_mib=500),
        row("fast", 0.05, FAST, memory_mib=2048),
        row("none", 0.04, FASTER, memory_mib=None),
    ]
    advice = recommend(report(*rows), "fps", 1024 * MIB)
    assert advice.recommendation.id == "baseline"
    assert advice.excluded["fast"] == "it needs 2.00 GiB, above the limit of 1.00 GiB"
    assert "its memory was not measured" in advice.excluded["none"]
    assert "above the limit of 1.00 GiB" in text(advice)


@pytest.mark.parametrize("told", [{"device_context_bytes": 600 * MIB}, {"device_process_memory_bytes": 1500 * MIB}])
def test_a_card_must_hold_the_context_too(told: dict[str, int]) -> None:
    fast = row("fast", 0.05, FAST, memory_mib=900)
    assert fast.memory is not None
    fast = msgspec.structs.replace(fast, memory=msgspec.structs.replace(fast.memory, **told))
    whole = report(baseline(memory_mib=500), fast)
    assert recommend(whole, "fps", 1500 * MIB).excluded == {}
    assert recommend(whole, "fps", 1024 * MIB).excluded["fast"] == (
        "it needs 1.46 GiB (600 MiB of it for the CUDA context and libraries), above the limit of 1.00 GiB"
    )


def test_a_peak_during_warm_up_counts_against_the_limit() -> None:
    rows = [baseline(memory_mib=500), row("fast", 0.05, FAST, memory_mib=500, warmup_mib=2000)]
    for device in (GPU, CPU):
        assert "fast" in recommend(report(*rows, device=device), "fps", 1000 * MIB).excluded


def test_lowest_latency_does_not_mean_batch_one() -> None:
    rows = [
        baseline(0.1, items=8),
        row("batch1", 0.02, {"batch_size": 1}, items=1, memory_mib=100),
        row("fast", 0.06, FAST, items=8, memory_mib=800),
        row("batch32", 0.15, {"batch_size": 32}, items=32, memory_mib=4000),
    ]
    latency = recommend(report(*rows), "latency")
    assert latency.recommendation.id == "fast"
    assert "the smallest batch would always win" in latency.excluded["batch1"]
    assert recommend(report(*rows), "memory").recommendation.id == "fast"
    throughput = best(report(*rows))
    assert throughput.id == "batch32"
    assert throughput.speedup == pytest.approx((0.1 / 8) / (0.15 / 32))


def test_least_memory_with_its_own_noise() -> None:
    rows = [
        baseline(memory_mib=1000),
        row("small", 0.2, FASTER, memory_mib=500),
        row("smaller", 0.3, {**FASTER, "channels_last": "on"}, memory_mib=490),
        row("unknown", 0.01, FAST, memory_mib=None),
    ]
    found = best(report(*rows), objective="memory")
    assert found.id == "small"
    assert found.tied_with == ["smaller"]
    assert found.noise == pytest.approx(20 / 490)
    assert "-500 MiB" in text(found)
    repeat = row("control", 0.1, roles=[ROLES["control"]], memory_mib=1600)
    assert best(report(*rows, repeat), objective="memory").id == "baseline"


def test_nothing_to_recommend_says_why() -> None:
    empty = recommend(report(), "fps")
    assert empty.recommendation is None
    assert empty.reasons == ["Nothing can be recommended: the report has no measurements."]
    failed = [row(f"r{index}", None, status="oom", reason="no memory") for index in range(3)]
    advice = recommend(report(*failed), "fps")
    assert advice.recommendation is None
    assert "none of the 3 rows is valid" in text(advice)
    assert "3 oom (r0, r1, r2)" in text(advice)
    assert set(advice.excluded) == {"r0", "r1", "r2"}


def test_without_a_valid_baseline_no_speedup_is_stated() -> None:
    found = best(report(row("baseline", None, status="oom", reason="no memory"), row("fast", 0.05, FAST)))
    assert (found.id, found.speedup, found.speedup_low, found.speedup_high) == ("fast", None, None, None)
    assert "speedup is unknown" in text(found)
    alone_row = best(report(row("fast", 0.05, FAST)))
    assert alone_row.speedup is None
    assert "it is not in the report" in text(alone_row)


def test_what_measuring_again_does_not_mend_has_its_own_remedy() -> None:
    for kind, remedy in (("unsteady", "Measure again."), ("memoized", "Empty the model's cache in the step")):
        (sentence, *_) = recommend(report(baseline(flags=[f"{kind}: so"]), row("fast", 0.05, FAST)), "fps").reasons
        assert remedy in sentence
        assert ("Measure again" in sentence) == (kind == "unsteady")


def test_an_unsteady_baseline_makes_nothing_look_good() -> None:
    advice = recommend(report(baseline(flags=["unsteady: 4 s"]), row("fast", 0.05, FAST)), "fps")
    assert advice.recommendation is None
    assert "the baseline is not reliable" in advice.reasons[0]


def test_a_latency_of_zero_is_no_figure() -> None:
    zero = msgspec.structs.replace(row("zero", 0.0, FAST), fps=None)
    advice = recommend(report(baseline(), zero), "fps")
    assert advice.recommendation.id == "baseline"
    assert "no latency above 0 s" in advice.excluded["zero"]


def test_an_interval_across_one_is_said() -> None:
    rows = [baseline(0.1, memory_mib=2000), row("small", 0.099, FAST, memory_mib=100)]
    assert "it may be no faster" in text(best(report(*rows), objective="memory"))


def test_the_reasons_state_every_part_of_a_whole_run() -> None:
    found = best(ladder_report())
    said = text(found)
    assert found.id == "all"
    assert found.speedup == pytest.approx(0.1 / 0.041, rel=0.01)
    for words in (
        "precision=bf16-autocast: 1.67x alone, memory -400 MiB; 1.67x in the ladder",
        "channels_last=on: 1.03x alone",
        "compile=default: 1.25x alone",
        "-420 MiB versus the baseline",
        "Its first call takes 39.8 s longer, which pays off after",
        "1 wrong (wrong), 1 not_effective (idle), 1 oom (oom)",
        "1 configuration was skipped",
    ):
        assert words in said
    assert all(reason.endswith(".") for reason in found.reasons)


def test_contenders_are_what_exploring_cannot_tell_from_the_best() -> None:
    rows = [baseline(0.1), row("a", 0.0505, FAST), row("b", 0.05, FASTER), row("c", 0.08, {"compile": "default"})]
    assert [row.id for row in rank(report(*rows), "fps").contenders()] == ["b", "a"]
    assert rank(report(), "fps").contenders() == []


def test_the_order_of_rows_does_not_matter() -> None:
    found = ladder_report()
    shuffled: list[Measurement] = list(found.measurements)
    random.Random(3).shuffle(shuffled)
    again = best(msgspec.structs.replace(found, measurements=shuffled))
    assert (again.id, again.speedup, again.tied_with) == (best(found).id, best(found).speedup, best(found).tied_with)


def test_a_toggle_missing_from_the_ladder_is_said() -> None:
    rows = [
        baseline(),
        row("both", 0.05, FASTER, roles=[ROLES["all"]]),
        row("p", 0.08, FAST, roles=[alone("precision")]),
    ]
    assert "Not measured separately: compile=default." in best(report(*rows)).reasons


def test_the_speed_beside_strict_fp32_is_said_where_the_baseline_is_another() -> None:
    plain = {**BASELINE, "precision": "torch-default"}
    rows = [
        baseline(0.1, configuration=plain),
        row("precision=fp32", 0.2, configuration={**plain, "precision": "fp32"}),
        row("fast", 0.05, configuration={**plain, **FASTER}),
    ]
    sentence = "Beside precision=fp32 alone it is 4.00x as fast."
    found = best(report(*rows))
    assert (found.id, found.versus, found.speedup) == ("fast", "baseline", pytest.approx(2))
    assert sentence in found.reasons
    assert "Beside" not in text(best(report(rows[0], rows[2])))  # it was not measured
    wrong = msgspec.structs.replace(rows[1], status="wrong", reason="planted")
    assert "Beside" not in text(best(report(rows[0], wrong, rows[2])))
    assert "Beside" not in text(best(ladder_report()))  # whose baseline is strict


def test_every_reason_is_about_known_rows() -> None:
    rows = [baseline(), row("r", 0.05, FAST, roles=[alone("precision"), rung("precision", 1)])]
    assert best(report(*rows)).configuration == {**BASELINE, **FAST}


def test_memory_that_grows_with_every_step_is_no_figure_to_go_by() -> None:
    grows = {"flags": ["growing_memory: 16.3 KiB more with every step"]}
    small = row("small", 0.09, {"precision": "bf16-autocast"}, memory_mib=400, **grows)
    found = report(baseline(memory_mib=1000), small)
    least = recommend(found, "memory")
    assert least.recommendation is not None
    assert least.recommendation.id == "baseline"
    assert "its memory grows with every step" in least.excluded["small"]
    limited = recommend(found, "fps", 2**40)
    assert "so it outgrows 1.00 TiB and any other limit" in limited.excluded["small"]
    fastest = recommend(found, "fps")
    assert fastest.recommendation is not None
    assert fastest.recommendation.id == "small"
    said = " ".join(fastest.reasons)
    assert "Memory: unknown, because its own or the baseline's grows with every step." in said
    assert "memory -" not in said
    assert recommend(report(baseline(memory_mib=1000, **grows), small), "memory").recommendation is None


def test_items_of_any_name_have_their_plural() -> None:
    found = report(baseline(), row("fast", 0.05, {"precision": "bf16-autocast"}), item="patch")
    assert any("has the most patches per second" in text for text in recommend(found, "fps").reasons)


def test_a_quoted_reason_ends_with_one_full_stop() -> None:
    wrong = row("odd", None, {"precision": "bf16-autocast"}, status="failed", reason="It broke.")
    found = report(row("baseline", None, status="failed", reason="no luck."), row("fast", 0.05), wrong)
    assert ".." not in " ".join(recommend(found, "fps").reasons)
