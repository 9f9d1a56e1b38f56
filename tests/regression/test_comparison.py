"""What `gpubench check` decides: planted changes of known size, in every metric, and what must not alarm."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from scipy import stats

from gpubench.flags import UNRELIABLE
from gpubench.hardware.facts import Device
from gpubench.regression.comparison import NamedReport, check
from gpubench.regression.time_verdicts import confidence, level
from gpubench.regression.verdicts import RUN_SPREAD, Check, Finding, Limits, RowCheck, holm, worst
from gpubench.report.model import Measurement, Quality, Report, StepCounts
from gpubench.stats.estimate import Estimate
from tests.reports import CPU, GPU, ROLES, alone, baseline, report, row

ROUNDS = 6
CHANGED = {"channels_last": "on"}
IDS = ("baseline", "fast")


def medians(step_s: float, noise: float, seed: int, count: int = ROUNDS) -> list[float]:
    """`count` processes' medians around `step_s`, whose geometric mean is just that."""
    chance = random.Random(seed)
    drawn = [step_s * (1 + chance.gauss(0, noise)) for _ in range(count)]
    correction = step_s / statistics.geometric_mean(drawn)
    return [value * correction for value in drawn]


def measured(step_s: float = 0.1, noise: float = 0.004, seed: int = 1, device: Device = GPU, **options: Any) -> Report:
    """A report with the baseline and one technique, which takes `step_s`; both in `ROUNDS` processes."""
    times = medians(step_s, noise, seed + 1)
    return report(
        baseline(0.2, explore_s=medians(0.2, noise, seed)),
        row("fast", step_s, CHANGED, roles=[alone("channels_last")], explore_s=times, **options),
        device=device,
    )


def compare(current: Report, before: Report, limits: Limits | None = None, allow: Sequence[str] = ()) -> Check:
    current = msgspec.structs.replace(current, created_at="2026-01-09T03:04:05+00:00")  # or they were one run
    return check(NamedReport("new.json", current), NamedReport("old.json", before), limits or Limits(), allow)


def of(found: Check, row_id: str = "fast") -> RowCheck:
    return next(one for one in found.rows if one.id == row_id)


def metric(found: Check, name: str, row_id: str = "fast") -> Finding:
    return next(one for one in of(found, row_id).findings if one.metric == name)


def with_row(found: Report, changed: Measurement) -> Report:
    rows = [changed if one.id == changed.id else one for one in found.measurements]
    return msgspec.structs.replace(found, measurements=rows)


def changed(found: Report, **fields: Any) -> Report:
    """`found` with other values in its row `fast`."""
    (target,) = (one for one in found.measurements if one.id == "fast")
    return with_row(found, msgspec.structs.replace(target, **fields))


def test_the_same_report_is_unchanged_in_every_metric() -> None:
    found = compare(measured(), measured())
    assert (found.verdict, found.exit_code) == ("unchanged", 0)
    assert {one.verdict for one in of(found).findings} == {"unchanged"}
    assert {one.metric for one in of(found).findings} == {
        "status", "quality", "graph_breaks", "peak_memory", "fps", "latency_p95", "compile_time",
    }  # fmt: skip


@pytest.mark.parametrize("slower", [1.10, 1.20, 2.0])
def test_a_slowdown_is_found_with_its_size_and_interval(slower: float) -> None:
    found = compare(measured(0.1 * slower, seed=7), measured())
    time = metric(found, "fps")
    assert (found.verdict, found.exit_code) == ("regressed", 1)
    assert time.change == pytest.approx(1 / slower - 1, rel=1e-6)
    assert time.change_low is not None and time.change_high is not None
    assert time.change_low < 1 / slower - 1 < time.change_high < 0
    assert time.baseline == pytest.approx(80.0)
    assert time.current == pytest.approx(80.0 / slower)
    assert time.p_value is not None and time.p_value < 0.01
    assert of(found, "baseline").verdict == "unchanged"


def test_a_speedup_is_an_improvement_and_no_failure() -> None:
    found = compare(measured(0.08, seed=7), measured())
    assert (found.verdict, found.exit_code) == ("improved", 0)
    assert metric(found, "fps").change == pytest.approx(0.25, rel=1e-6)


def test_an_effect_below_the_limit_is_none_however_sure_it_is() -> None:
    found = compare(measured(0.103, noise=0.0001, seed=7), measured(noise=0.0001), Limits(run_spread=0.005))
    time = metric(found, "fps")
    assert time.p_value is not None and time.p_value < 0.01
    assert time.verdict == "unchanged"


def test_an_effect_that_chance_explains_is_inconclusive_however_large_it_is() -> None:
    found = compare(measured(0.11, noise=0.08, seed=7), measured(noise=0.08))
    time = metric(found, "fps")
    assert (time.verdict, found.exit_code) == ("inconclusive", 4)
    assert time.detectable is not None and time.detectable > 0.05
    assert "inconclusive; smallest detectable slowdown" in time.reason


def test_noise_that_would_hide_the_limit_is_inconclusive_even_without_a_change() -> None:
    assert metric(compare(measured(noise=0.08, seed=7), measured(noise=0.08)), "fps").verdict == "inconclusive"


def test_one_process_each_cannot_tell() -> None:
    single = report(baseline(0.2), row("fast", 0.1, CHANGED, roles=[alone("channels_last")]), device=CPU)
    found = compare(single, single)
    assert found.verdict == "inconclusive"
    assert metric(found, "fps").rounds == 1


def test_the_interval_of_separate_runs_holds_what_processes_and_runs_differ_by() -> None:
    before, after = measured(noise=0.02), measured(noise=0.02, seed=9)
    logs = {(side, row_id): logs_of(found, row_id) for side, found in enumerate((before, after)) for row_id in IDS}
    variances = {key: statistics.variance(values) for key, values in logs.items()}
    pooled = statistics.fmean(variances.values())
    moved, error, freedom = dict[str, float](), dict[str, float](), dict[str, int]()
    for row_id in IDS:
        own = (variances[0, row_id] + variances[1, row_id]) / 2
        freedom[row_id] = (2 if own > pooled else 4) * (ROUNDS - 1)
        error[row_id] = math.sqrt(max(own, pooled) * 2 / ROUNDS + RUN_SPREAD["cuda"] ** 2)
        moved[row_id] = statistics.fmean(logs[1, row_id]) - statistics.fmean(logs[0, row_id])
    assert len(set(freedom.values())) == 2  # both cases are here
    p_values = {
        direction: holm([stats.t.sf(direction * moved[row_id] / error[row_id], freedom[row_id]) for row_id in IDS])
        for direction in (1, -1)
    }
    for index, row_id in enumerate(IDS):
        time = metric(compare(after, before), "fps", row_id)
        low, high = stats.t.interval(0.90, freedom[row_id], loc=moved[row_id], scale=error[row_id])
        assert time.change_low == pytest.approx(math.exp(-high) - 1)
        assert time.change_high == pytest.approx(math.exp(-low) - 1)
        assert time.p_value == pytest.approx(min(p_values[1][index], p_values[-1][index]))


def test_what_runs_of_the_machine_differ_by_is_the_users_to_say() -> None:
    slower, before = measured(0.104, noise=0.001, seed=7), measured(noise=0.001)
    limits = {spread: Limits(slowdown=0.025, run_spread=spread) for spread in (0.0, 0.05)}
    verdicts = {spread: metric(compare(slower, before, one), "fps").verdict for spread, one in limits.items()}
    assert verdicts == {0.0: "regressed", 0.05: "inconclusive"}


def logs_of(found: Report, row_id: str) -> list[float]:
    (target,) = (one for one in found.measurements if one.id == row_id)
    return [math.log(part.median_s) for part in target.rounds]


# ----- paired rounds


def paired(before: Sequence[float], after: Sequence[float]) -> Check:
    """Two sides of one session, whose rounds took so long."""
    sides = [
        msgspec.structs.replace(report(baseline(times[0], final_s=list(times)), device=CPU), session="s")
        for times in (before, after)
    ]
    return compare(sides[1], sides[0], Limits(slowdown=0.025))


def test_rounds_of_one_session_are_paired() -> None:
    """The machine is up to twice as slow from round to round, which both sides share."""
    machine = [0.1, 0.2, 0.15, 0.1, 0.18, 0.12, 0.11, 0.2, 0.14, 0.1]
    wobble = [1.0, 1.004, 0.996, 1.002, 0.998, 1.003, 0.997, 1.001, 0.999, 1.0]
    same = paired(machine, [one * two for one, two in zip(machine, wobble, strict=True)])
    assert (same.verdict, same.paired) == ("unchanged", True)
    slower = paired(machine, [1.05 * one * two for one, two in zip(machine, wobble, strict=True)])
    assert slower.verdict == "regressed"
    time = metric(slower, "fps", "baseline")
    assert time.rounds == len(machine)
    logs = stats.ttest_1samp([math.log(1.05 * two) for two in wobble], 0, alternative="greater")
    assert time.p_value == pytest.approx(logs.pvalue, rel=1e-6)


def test_a_side_that_differs_from_itself_decides_nothing() -> None:
    """Its first and last turns of a round are 10 % slower than those between: the harness or the machine did that."""

    def side(step_s: float, restless: float) -> Report:
        found = report(baseline(step_s, final_s=[step_s] * 10), device=CPU)
        (only,) = found.measurements
        rounds, samples = [], []
        for part in only.rounds:
            turns = [step_s * (restless if index % 4 in (0, 3) else 1.0) for index in range(8)]
            turned = part.phase == "final"
            values = turns if turned else [step_s]
            samples += values
            rounds.append(
                msgspec.structs.replace(
                    part, samples=len(values), turns=[1] * 8 if turned else [], median_s=statistics.median(values)
                )
            )
        return msgspec.structs.replace(
            with_row(found, msgspec.structs.replace(only, rounds=rounds, samples_s=samples)), session="s"
        )

    assert metric(compare(side(0.12, 1.0), side(0.1, 1.0)), "fps", "baseline").verdict == "regressed"
    found = metric(compare(side(0.12, 1.1), side(0.1, 1.0)), "fps", "baseline")
    assert found.verdict == "inconclusive"
    assert "two halves of one side's samples" in found.reason


def test_sides_of_one_session_are_of_one_device() -> None:
    one = msgspec.structs.replace(report(baseline(0.1, final_s=[0.1] * 5)), session="s")
    other = msgspec.structs.replace(one, device=msgspec.structs.replace(one.device, uuid="GPU-9"))
    assert compare(other, one).verdict == "incomparable"


def test_two_paired_rounds_are_too_few() -> None:
    found = paired([0.1, 0.1], [0.2, 0.2])
    assert metric(found, "fps", "baseline").verdict == "inconclusive"


def test_sides_of_one_session_may_have_other_names_and_parameters() -> None:
    one = msgspec.structs.replace(report(baseline(0.1, final_s=[0.1] * 5)), session="s")
    workload = msgspec.structs.replace(one.workload, name="renamed", parameters={"width": 64})
    assert compare(msgspec.structs.replace(one, workload=workload), one).verdict == "unchanged"
    apart = msgspec.structs.replace(one, workload=workload, session=None)
    assert compare(apart, one).verdict == "incomparable"


def test_sides_of_one_session_may_differ_in_software() -> None:
    """That is what they are compared for."""
    one = msgspec.structs.replace(report(baseline(0.1, final_s=[0.1] * 5)), session="s")
    environment = msgspec.structs.replace(one.environment, torch="2.14.0")
    found = compare(msgspec.structs.replace(one, environment=environment), one)
    assert found.verdict == "unchanged"
    assert found.differences == ["torch: 2.13.0 against 2.14.0"]


# ----- hard gates


@pytest.mark.parametrize(
    "status", ["oom", "wrong", "crashed", "timeout", "failed", "not_effective", "unproven", "skipped"]
)
def test_a_row_that_ran_and_does_not_any_more_is_a_regression(status: Any) -> None:
    found = compare(changed(measured(), status=status, reason="as planted"), measured())
    assert found.verdict == "regressed"
    assert metric(found, "status").reason == f"It was ok and is {status}: as planted."


def test_a_row_that_runs_again_is_an_improvement() -> None:
    found = compare(measured(), changed(measured(), status="oom", reason="as planted"))
    assert found.verdict == "improved"


def test_a_row_that_never_ran_is_unchanged() -> None:
    found = compare(changed(measured(), status="failed"), changed(measured(), status="oom"))
    assert of(found).verdict == "unchanged"


def test_a_side_that_failed_in_a_later_round_makes_the_other_no_better() -> None:
    """It may have been killed by what the other did: nothing was compared."""
    one = msgspec.structs.replace(report(baseline(0.1, final_s=[0.1] * 5)), session="s")
    (row_,) = one.measurements
    killed = msgspec.structs.replace(row_, status="oom", reason="planted", flags=[UNRELIABLE.flag("oom")])
    found = compare(one, msgspec.structs.replace(one, measurements=[killed]))
    assert (found.verdict, found.exit_code) == ("inconclusive", 4)


def test_a_missing_row_is_a_regression() -> None:
    current = measured()
    current = msgspec.structs.replace(current, measurements=current.measurements[:1])
    found = compare(current, measured())
    assert (found.verdict, found.exit_code) == ("regressed", 1)
    assert of(found).findings[0].reason == "It is missing from the current report."


def test_a_row_that_the_run_picked_by_itself_may_be_missing() -> None:
    extra = row("rung", 0.09, {"compile": "default"}, roles=[ROLES["all"]])
    before = measured()
    before = msgspec.structs.replace(before, measurements=[*before.measurements, extra])
    found = compare(measured(), before)
    assert of(found, "rung").verdict == "incomparable"
    assert found.verdict == "unchanged"


def test_a_row_missing_from_a_run_that_was_cut_off_is_a_regression() -> None:
    current = measured()
    current = msgspec.structs.replace(current, measurements=current.measurements[:1], finished_at=None)
    found = compare(current, measured())
    assert found.verdict == "regressed"
    assert of(found).findings[0].reason == "It is missing from the current report, whose run was interrupted."


def test_new_rows_are_told_and_gate_nothing() -> None:
    before = measured()
    found = compare(measured(), msgspec.structs.replace(before, measurements=before.measurements[:1]))
    assert found.verdict == "unchanged"
    assert found.notes == ["1 row is new: fast."]


def test_memory_that_grew_beyond_its_limit_is_a_regression() -> None:
    assert compare(measured(memory_mib=1021), measured()).verdict == "regressed"
    assert compare(measured(memory_mib=1019), measured()).verdict == "unchanged"
    assert compare(measured(memory_mib=900), measured()).verdict == "improved"
    wide = Limits(memory_growth=0.03)
    assert compare(measured(memory_mib=1021), measured(), wide).verdict == "unchanged"


def test_resident_memory_has_a_grain_of_its_own() -> None:
    before = measured(device=CPU, memory_mib=100)
    assert metric(compare(measured(device=CPU, memory_mib=110), before), "peak_memory").verdict == "unchanged"
    assert metric(compare(measured(device=CPU, memory_mib=130), before), "peak_memory").verdict == "regressed"


def test_memory_that_was_not_measured_is_said_to_be_so() -> None:
    found = compare(measured(memory_mib=None), measured())
    assert (metric(found, "peak_memory").verdict, metric(found, "peak_memory").current) == ("inconclusive", None)
    assert found.exit_code == 4
    found = compare(measured(), measured(memory_mib=None))
    assert (metric(found, "peak_memory").verdict, found.exit_code) == ("incomparable", 0)
    assert metric(compare(measured(memory_mib=None), measured(memory_mib=None)), "peak_memory").baseline is None


def test_memory_that_torch_only_reserved_is_no_growth() -> None:
    """The caching allocator takes segments of 20 MiB: of 300 MiB that is 7 %, without a byte more in use."""
    before = measured(memory_mib=300)
    (target,) = (one for one in before.measurements if one.id == "fast")
    assert target.memory is not None and target.memory.peak_memory_reserved_bytes is not None
    reserved = target.memory.peak_memory_reserved_bytes + 20 * 2**20
    memory = msgspec.structs.replace(target.memory, peak_memory_reserved_bytes=reserved)
    assert metric(compare(changed(before, memory=memory), before), "peak_memory").verdict == "unchanged"


@pytest.mark.parametrize(
    ("mode", "more_mib", "verdict"),
    [
        ("default", 500, "unchanged"),  # the cache of the allocator is larger, the model needs no more
        ("reduce-overhead", 500, "regressed"),  # the graph's own pool has grown
        ("reduce-overhead", 20, "unchanged"),  # by one segment
    ],
)
def test_the_memory_of_cuda_graphs_is_what_was_reserved(mode: str, more_mib: int, verdict: str) -> None:
    configuration = {"precision": "fp32", "compile": mode}
    before = changed(measured(memory_mib=400), configuration=configuration)
    target = before.measurements[1]
    assert target.memory is not None and target.memory.peak_memory_reserved_bytes is not None
    reserved = target.memory.peak_memory_reserved_bytes + more_mib * 2**20
    memory = msgspec.structs.replace(target.memory, peak_memory_reserved_bytes=reserved)
    found = metric(compare(changed(before, memory=memory), before), "peak_memory")
    assert found.verdict == verdict, found.reason


def test_graph_breaks_that_are_not_counted_any_more_do_not_pass() -> None:
    found = compare(measured(), changed(measured(), graph_breaks=0))
    assert (metric(found, "graph_breaks").verdict, found.exit_code) == ("inconclusive", 4)


def test_rows_that_ran_in_neither_are_no_comparison() -> None:
    failed = report(row("baseline", None, roles=[ROLES["baseline"]], status="oom", reason="planted"))
    found = compare(failed, failed)
    assert (found.verdict, found.exit_code) == ("incomparable", 3)
    assert found.notes == ["No row of the baseline ran in both reports."]


@pytest.mark.parametrize(("before", "after", "verdict"), [(0, 1, "regressed"), (2, 1, "improved"), (1, 1, "unchanged")])
def test_graph_breaks_are_counted(before: int, after: int, verdict: str) -> None:
    found = compare(changed(measured(), graph_breaks=after), changed(measured(), graph_breaks=before))
    assert metric(found, "graph_breaks").verdict == verdict


COUNTS = StepCounts(
    operators=100, kernels=100, flops=10**9, bytes_allocated=2**30, frames_compiled=1, recompiles=0,
    copies_to_device=0, synchronizations=0, work={"bf16": 1.0},
)  # fmt: skip


def counted(device: Device = GPU, **fields: Any) -> Report:
    return changed(measured(device=device), counts=msgspec.structs.replace(COUNTS, **fields))


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("operators", {"operators": 101}, "1 operator more: 101, was 100."),
        ("kernels", {"kernels": 114}, "14 kernels more: 114, was 100."),
        ("flops", {"flops": 15 * 10**8}, "5e+08 FLOPs more in a step: 1.5e+09, was 1e+09."),
        (
            "bytes_allocated",
            {"bytes_allocated": 2**30 + 2**28},
            "256 MiB more allocated in a step: 1.25 GiB, was 1.00 GiB.",
        ),
        ("frames_compiled", {"frames_compiled": 4}, "3 compiled frames more: 4, was 1."),
        ("recompiles", {"recompiles": 1}, "1 recompile more: 1, was 0."),
        ("copies_to_device", {"copies_to_device": 2}, "2 copies to the device more: 2, was 0."),
        ("synchronizations", {"synchronizations": 1}, "1 synchronization more: 1, was 0."),
        ("work_fp32", {"work": {"bf16": 0.88, "fp32": 0.12}}, "12 % of the work fell back to fp32: 12.0%, was 0.0%."),
    ],
)
def test_what_repeats_exactly_regresses_by_any_change(name: str, fields: dict[str, Any], words: str) -> None:
    found = compare(counted(**fields), counted())
    assert (found.verdict, found.exit_code) == ("regressed", 1)
    assert (metric(found, name).verdict, metric(found, name).reason) == ("regressed", words)
    others = [one.verdict for one in of(found).findings if one.metric != name]
    assert set(others) == {"unchanged"}
    assert metric(compare(counted(), counted(**fields)), name).verdict == "improved"


@pytest.mark.parametrize(("device", "verdict"), [(GPU, "unchanged"), (CPU, "regressed")])
def test_blocks_of_the_gpus_allocator_may_be_a_little_larger(device: Device, verdict: str) -> None:
    found = compare(counted(device=device, bytes_allocated=2**30 + 2**20), counted(device=device))
    assert metric(found, "bytes_allocated").verdict == verdict
    assert metric(compare(counted(bytes_allocated=1), counted(bytes_allocated=0)), "bytes_allocated").verdict != (
        "unchanged"
    )


@pytest.mark.parametrize("picking", [{"cudnn_benchmark": "on"}, {"compile": "max-autotune"}])
def test_kernels_that_were_picked_by_timing_them_are_not_gated(picking: dict[str, Any]) -> None:
    before, after = (changed(counted(kernels=n, flops=n, synchronizations=0), configuration=picking) for n in (100, 99))
    found = compare(before, after)
    assert found.verdict == "unchanged"
    assert metric(found, "kernels").verdict == metric(found, "flops").verdict == "incomparable"
    assert "picked by timing" in metric(found, "kernels").reason
    waiting = changed(counted(synchronizations=1), configuration=picking)
    assert metric(compare(waiting, after), "synchronizations").verdict == "regressed"


def test_graph_breaks_are_told_by_their_number() -> None:
    found = compare(changed(measured(), graph_breaks=3), changed(measured(), graph_breaks=0))
    assert metric(found, "graph_breaks").reason == "3 graph breaks more: 3, was 0."


@pytest.mark.parametrize("field", ["torch", "cuda", "triton"])
def test_counts_of_other_software_are_not_compared_and_that_is_said(field: str) -> None:
    before = counted()
    environment = msgspec.structs.replace(before.environment, **{field: "2.9"})
    before = msgspec.structs.replace(before, environment=environment)
    found = compare(counted(kernels=200), before, allow=[field])
    kernels = metric(found, "kernels")
    assert (found.verdict, kernels.verdict, kernels.baseline, kernels.current) == (
        "unchanged",
        "incomparable",
        100,
        200,
    )
    assert kernels.reason.startswith("Not compared: it repeats exactly only where all is the same")
    assert f"{field}: 2.9 against" in kernels.reason


def test_counts_of_another_gpubench_or_gpu_are_not_compared() -> None:
    for before in (
        msgspec.structs.replace(counted(), tool=msgspec.structs.replace(counted().tool, version="0.0.1")),
        counted(device=msgspec.structs.replace(GPU, name="Another GPU")),
    ):
        found = compare(counted(kernels=200), before, allow=["device"])
        assert metric(found, "kernels").verdict == "incomparable"


@pytest.mark.parametrize(("instructions", "verdict"), [(["avx2"], "regressed"), (["avx2", "avx512f"], "incomparable")])
def test_on_cpus_of_another_name_the_same_instructions_are_the_same_operators(
    instructions: list[str], verdict: str
) -> None:
    one = msgspec.structs.replace(CPU, instruction_sets=["avx2"])
    other = msgspec.structs.replace(CPU, name="Another CPU", instruction_sets=instructions)
    found = compare(counted(device=other, operators=200), counted(device=one), allow=["device"])
    assert metric(found, "operators").verdict == verdict


def test_reports_without_counts_are_compared_without_them() -> None:
    found = compare(counted(), measured())
    assert found.verdict == "unchanged"
    assert {metric(found, name).reason for name in ("operators", "kernels", "work_fp32")} == {"Not measured before."}


def test_counts_that_are_missing_now_do_not_pass() -> None:
    assert compare(measured(), counted()).verdict == "inconclusive"


def test_where_both_sides_shared_their_rounds_the_time_decides_and_not_the_counts() -> None:
    sides = [msgspec.structs.replace(counted(operators=count), session="s") for count in (101, 100)]
    found = compare(*sides)
    assert (found.verdict, metric(found, "operators").verdict) == ("unchanged", "regressed")


def quality(error: float | None, passed: bool | None = True) -> Quality:
    return Quality(passed=passed, reason="as planted", reference="plain fp32", relative_error=error)


def test_outputs_that_got_worse_are_a_regression() -> None:
    before = changed(measured(), quality=quality(1e-3))
    for error, verdict in ((1.4e-3, "unchanged"), (1.6e-3, "regressed"), (1e-4, "improved")):
        assert metric(compare(changed(measured(), quality=quality(error)), before), "quality").verdict == verdict
    assert metric(compare(changed(measured(), quality=quality(None, None)), before), "quality").verdict == "regressed"
    tiny = changed(measured(), quality=quality(1e-7))
    assert metric(compare(changed(measured(), quality=quality(5e-6)), tiny), "quality").verdict == "unchanged"


def test_compile_time_is_compared_where_something_was_compiled() -> None:
    def compiled(seconds: float, **more: Any) -> Report:
        return report(baseline(0.1), row("c", 0.05, {"compile": "default"}, compile_s=seconds, **more))

    assert metric(compare(compiled(16.0), compiled(10.0)), "compile_time", "c").verdict == "regressed"
    assert metric(compare(compiled(14.0), compiled(10.0)), "compile_time", "c").verdict == "unchanged"
    assert metric(compare(compiled(5.0), compiled(10.0)), "compile_time", "c").verdict == "improved"
    warm = compare(compiled(1.0, flags=["warm_cache: planted"]), compiled(10.0))
    assert metric(warm, "compile_time", "c").verdict == "incomparable"
    assert metric(compare(measured(), measured()), "compile_time").reason == "Nothing was compiled."


def test_a_compile_time_read_while_others_kept_the_machine_busy_decides_nothing() -> None:
    def compiled(seconds: float, **more: Any) -> Report:
        return report(baseline(0.1), row("c", 0.05, {"compile": "default"}, compile_s=seconds, **more))

    found = metric(compare(compiled(30.0, flags=["contaminated: planted"]), compiled(10.0)), "compile_time", "c")
    assert found.verdict == "inconclusive"
    assert "contaminated: planted" in found.reason


def test_a_tail_that_grew_is_a_regression_though_the_median_is_the_same() -> None:
    def tailed(factor: float) -> Report:
        found = measured()
        (target,) = (one for one in found.measurements if one.id == "fast")
        samples, start = list(target.samples_s), 0
        for part in target.rounds:  # the two slowest of each process's eleven
            for index in sorted(range(start, start + part.samples), key=lambda at: samples[at])[-2:]:
                samples[index] *= factor
            start += part.samples
        return changed(found, samples_s=samples)

    found = compare(tailed(1.5), measured())
    assert metric(found, "latency_p95").verdict == "regressed"
    assert metric(found, "fps").verdict == "unchanged"
    assert metric(compare(tailed(1.1), measured()), "latency_p95").verdict == "unchanged"


# ----- what cannot be compared


@pytest.mark.parametrize(
    ("field", "part", "change"),
    [
        ("device", "device", {"name": "Other GPU"}),
        ("uuid", "device", {"uuid": "GPU-1"}),
        ("power_limit", "device", {"power_limit_watts": 250.0}),
        ("driver", "device", {"driver_version": "560.1"}),
        ("torch", "environment", {"torch": "2.14.0"}),
        ("cudnn", "environment", {"cudnn": "9.2"}),
        ("cuda", "environment", {"cuda": "13.0"}),
        ("variables", "environment", {"variables": {"NVIDIA_TF32_OVERRIDE": "1"}}),
        ("batch_size", "workload", {"batch_size": 4}),
        ("input_shapes", "workload", {"input_shapes": [[8, 3, 64, 64]]}),
        ("protocol", "protocol", {"block_s": 0.1}),
        ("protocol", "protocol", {"revision": 1}),
        ("command", "plan", {"command": "batch-sweep"}),
    ],
)
def test_unlike_machines_and_protocols_are_refused_by_name(field: str, part: str, change: dict[str, Any]) -> None:
    current = measured()
    other = msgspec.structs.replace(getattr(current, part), **change)
    current = msgspec.structs.replace(current, **{part: other})
    found = compare(current, measured())
    assert (found.verdict, found.exit_code, found.rows) == ("incomparable", 3, [])
    assert [text.partition(":")[0] for text in found.differences] == [field]
    allowed = compare(current, measured(), allow=[field])
    assert allowed.verdict == "unchanged"
    assert allowed.allowed == [field]
    assert compare(current, measured(), allow=["libc"]).verdict == "incomparable"


def test_a_minor_driver_update_and_another_seed_are_alike() -> None:
    one, other = (
        msgspec.structs.replace(
            found, device=msgspec.structs.replace(found.device, driver_version=version),
            protocol=msgspec.structs.replace(found.protocol, seed=seed, rounds=seed, machine_drift=seed / 100),
        )
        for found, version, seed in ((measured(), "560.28", 1), (measured(), "560.94", 2))
    )  # fmt: skip
    assert compare(one, other).verdict == "unchanged"


def with_settings(found: Report, **settings: str | int) -> Report:
    """`found` with these toggles in every row."""
    rows = [msgspec.structs.replace(one, configuration={**one.configuration, **settings}) for one in found.measurements]
    return msgspec.structs.replace(found, measurements=rows)


def test_a_toggle_that_only_one_report_knows_is_no_matter() -> None:
    newer = with_settings(measured(), new_toggle="off")
    for one, other in ((newer, measured()), (measured(), newer)):
        found = compare(one, other)
        assert (found.verdict, len(found.rows), found.notes) == ("unchanged", 2, [])


def test_settings_of_every_row_are_named_and_may_be_allowed() -> None:
    one, other = with_settings(measured(), threads=2), with_settings(measured(), threads=4)
    found = compare(other, one)
    assert (found.verdict, found.differences) == ("incomparable", ["settings: threads=2 against threads=4"])
    allowed = compare(other, one, allow=["settings"])
    assert (allowed.verdict, len(allowed.rows)) == ("unchanged", 2)


def test_the_control_is_no_row_of_its_own() -> None:
    """It has the baseline's configuration, and a run without a final has none: it is neither compared nor missed."""

    def with_control(baseline_s: float) -> Report:
        control = row("control", 0.2, roles=[ROLES["control"]], explore_s=medians(0.2, 0.004, 5))
        return report(baseline(baseline_s, explore_s=medians(baseline_s, 0.004, 1)), control)

    without = report(baseline(0.2, explore_s=medians(0.2, 0.004, 1)))
    for one, other in itertools.product((with_control(0.2), without), repeat=2):
        found = compare(one, other)
        assert [(row.id, row.verdict) for row in found.rows] == [("baseline", "unchanged")]
    slower = compare(with_control(0.3), with_control(0.2))
    assert [(row.id, row.verdict) for row in slower.rows] == [("baseline", "regressed")]


def test_batches_of_unlike_sizes_are_compared_by_item_where_that_is_allowed() -> None:
    current = measured(0.2, items=16)
    rows = [msgspec.structs.replace(one, items_per_step=16, fps=None) for one in current.measurements]
    workload = msgspec.structs.replace(current.workload, batch_size=16)
    current = msgspec.structs.replace(current, measurements=rows, workload=workload)
    assert compare(current, measured()).differences == ["batch_size: 8 against 16"]
    found = compare(current, measured(), allow=["batch_size"])
    assert metric(found, "fps").change == pytest.approx(0, abs=1e-9)
    assert metric(found, "fps", "baseline").change == pytest.approx(1.0)
    more = [
        msgspec.structs.replace(one, memory=msgspec.structs.replace(one.memory, peak_memory_allocated_bytes=2**40))
        for one in current.measurements
        if one.memory
    ]
    found = compare(msgspec.structs.replace(current, measurements=more), measured(), allow=["batch_size"])
    assert {one.verdict for one in found.rows} == {"unchanged", "improved"}


def test_where_files_are_kept_and_which_card_is_seen_is_no_difference() -> None:
    variables = {"TORCHINDUCTOR_CACHE_DIR": "/elsewhere", "CUDA_VISIBLE_DEVICES": "1"}
    other = measured()
    other = msgspec.structs.replace(other, environment=msgspec.structs.replace(other.environment, variables=variables))
    assert compare(other, measured()).differences == []


def test_another_workload_is_incomparable_and_cannot_be_allowed() -> None:
    current = measured()
    other = msgspec.structs.replace(current, workload=msgspec.structs.replace(current.workload, mode="training"))
    assert compare(other, current, allow=["device"]).verdict == "incomparable"


def test_rows_over_unlike_batches_do_not_pass() -> None:
    found = compare(measured(items=16), measured())
    assert (metric(found, "fps").verdict, found.exit_code) == ("inconclusive", 4)
    assert metric(found, "fps").reason == "16 items per step, 8 before."
    assert compare(measured(items=16, memory_mib=2000), measured()).exit_code == 1


def test_figures_that_cannot_be_relied_on_decide_nothing() -> None:
    flagged = measured(0.2, seed=7, flags=["contaminated: by a miner"])
    found = metric(compare(flagged, measured()), "fps")
    assert found.verdict == "inconclusive"
    assert "contaminated: by a miner" in found.reason


# ----- statistics


def test_holm_is_what_the_literature_says() -> None:
    # Holm 1979 by hand: sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, made monotone.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_worst_verdict_is_told() -> None:
    assert worst(["unchanged", "regressed", "improved"]) == "regressed"
    assert worst(["unchanged", "inconclusive", "improved"]) == "inconclusive"
    assert worst(["unchanged", "incomparable"]) == "unchanged"
    assert worst([]) == "incomparable"


def test_the_detectable_effect_is_detected_in_80_percent() -> None:
    chance = random.Random(3)
    spread, rounds, rows = 0.02, 10, 5
    asked = Estimate(0.0, 0.0, spread / rounds**0.5, rounds - 1, rounds, "paired")
    visible = asked.detectable(level(asked) / rows)
    hits = 0
    for _ in range(3000):
        drawn = [math.log1p(visible) + chance.gauss(0, spread) for _ in range(rounds)]
        hits += stats.ttest_1samp(drawn, 0, alternative="greater").pvalue < level(asked) / rows
    assert hits / 3000 == pytest.approx(0.80, abs=0.03)


def test_a_slowdown_of_the_limit_passes_in_no_more_than_1_in_20() -> None:
    chance, limit, rounds, passed = random.Random(4), 0.05, 10, 0
    for _ in range(2000):
        drawn = [math.log1p(limit) + chance.gauss(0, 0.03) for _ in range(rounds)]
        error = statistics.stdev(drawn) / rounds**0.5
        moved = Estimate(statistics.fmean(drawn), 0.0, error, rounds - 1, rounds, "paired")
        passed += moved.rules_out(limit, confidence(moved))
    assert passed / 2000 == pytest.approx(0.025, abs=0.01)  # at each of two looks


def test_looks_before_all_rows_are_there_are_corrected_for_all() -> None:
    before, after = [0.1] * 5, [0.103, 0.107, 0.102, 0.106, 0.1045]
    sides = [
        msgspec.structs.replace(report(baseline(times[0], final_s=list(times)), device=CPU), session="s")
        for times in (before, after)
    ]
    sources = [NamedReport(name, found) for name, found in zip("ab", sides, strict=True)]
    alone_ = check(sources[1], sources[0], Limits(slowdown=0.025))
    of_many = check(sources[1], sources[0], Limits(slowdown=0.025), family=50)
    assert (alone_.verdict, of_many.verdict) == ("regressed", "inconclusive")
    p_values = [metric(found, "fps", "baseline").p_value or 0.0 for found in (alone_, of_many)]
    assert p_values[1] == pytest.approx(50 * p_values[0])


def test_rows_of_a_noisy_allocator_do_not_hide_those_of_a_steady_one() -> None:
    def rows(slow: float) -> Report:
        noisy, steady = medians(0.2, 0.15, 1), medians(0.1 * slow, 0.004, 2)
        return report(
            row("baseline", 0.2, {"allocator": "system"}, roles=[ROLES["baseline"]], explore_s=noisy),
            row("steady", 0.1, {"allocator": "tuned"}, roles=[alone("allocator")], explore_s=steady),
        )

    found = compare(rows(1.1), rows(1.0))
    assert metric(found, "fps", "steady").verdict == "regressed"
    assert metric(found, "fps", "baseline").verdict == "inconclusive"


def test_a_row_that_is_less_steady_than_the_others_is_held_to_its_own_spread() -> None:
    """40 comparisons of 10 rows that did not change, one of which has 20 times the noise of the others."""
    alarms = 0
    for seed in range(40):
        sides = []
        for side in (0, 1):
            chance = random.Random(1000 * seed + side)
            rows = [
                row(
                    f"row{index}", 0.1, {"batch_size": index}, roles=[ROLES["grid"]],
                    explore_s=[0.1 * (1 + chance.gauss(0, 0.04 if index == 0 else 0.002)) for _ in range(5)],
                )
                for index in range(10)
            ]  # fmt: skip
            sides.append(report(baseline(0.1), *rows))
        found = compare(sides[1], sides[0], Limits(slowdown=0.025, run_spread=0.0))
        alarms += any(one.verdict in ("regressed", "improved") for one in found.rows)
    assert alarms <= 2


def test_disturbed_rounds_are_paired_like_the_others() -> None:
    """What disturbed a round disturbed both sides; leaving those out would leave 3 of these."""
    flags = [[]] + [["contaminated: planted"]] * 7 + [[]] * 3
    sides = [
        msgspec.structs.replace(
            report(baseline(0.1, final_s=[0.1 * slow * value for value in wobble], round_flags=flags), device=CPU),
            session="s",
        )
        for slow, wobble in ((1.0, [1.0] * 10), (1.1, [1.0, 1.01, 0.99, 1.0, 1.01, 0.99, 1.0, 1.0, 1.0, 1.0]))
    ]
    found = metric(compare(sides[1], sides[0]), "fps", "baseline")
    assert (found.verdict, found.rounds) == ("regressed", 10)


def test_one_process_each_is_neither_worse_nor_fine() -> None:
    """What identical processes differ by is assumed then, not seen."""
    for slow in (1.0, 1.5):
        single = [report(baseline(0.1 * factor), device=GPU) for factor in (1.0, slow)]
        found = metric(compare(single[1], single[0]), "fps", "baseline")
        assert found.verdict == "inconclusive"
        assert "nothing was measured in several processes" in found.reason


def test_a_row_without_one_of_the_toggles_is_not_taken_for_another() -> None:
    def rows(*configurations: dict[str, str | int]) -> Report:
        first = row("baseline", 0.1, roles=[ROLES["baseline"]], configuration={"allocator": "tuned"})
        rest = [
            row(f"row-{index}", 0.1, roles=[ROLES["grid"]], configuration=one)
            for index, one in enumerate(configurations)
        ]
        return report(first, *rest)

    found = compare(rows(), rows({}))
    assert [(one.id, one.verdict) for one in found.rows] == [("baseline", "inconclusive"), ("row-0", "regressed")]


def test_many_rows_do_not_make_false_alarms() -> None:
    """50 comparisons of 20 rows that did not change; the runs differ by what they do here."""
    alarms = 0
    for seed in range(50):
        sides = []
        for side in (0, 1):
            chance = random.Random(1000 * seed + side)
            run = chance.gauss(0, RUN_SPREAD["cuda"] / 2**0.5)
            rows = [
                row(
                    f"row{index}", 0.1, {"batch_size": index}, roles=[ROLES["grid"]],
                    explore_s=[0.1 * (1 + run + chance.gauss(0, 0.02)) for _ in range(5)],
                )
                for index in range(20)
            ]  # fmt: skip
            sides.append(report(baseline(0.1), *rows))
        found = compare(sides[1], sides[0])
        alarms += any(one.verdict == "regressed" for one in found.rows)
    assert alarms <= 2  # 1 % of 50 is 0.5; 3 or more have a probability of 1.4 %


@pytest.mark.parametrize("device", [GPU, CPU])
def test_the_order_of_the_rows_changes_nothing(device: Device) -> None:
    current, before = measured(0.11, seed=5, device=device), measured(device=device)
    turned = msgspec.structs.replace(current, measurements=current.measurements[::-1])
    assert compare(turned, before).rows == compare(current, before).rows
