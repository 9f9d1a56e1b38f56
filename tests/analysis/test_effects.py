from __future__ import annotations

import msgspec
import pytest

from gpubench.analysis.effects import compile_difference, effects, ladder, payback_iterations
from gpubench.analysis.peak_memory import needed_bytes, peak_bytes
from gpubench.analysis.speedup import Speedups
from tests.reports import CPU, GPU, MIB, alone, baseline, ladder_report, report, row, rung

FAST, LAST = {"precision": "bf16-autocast"}, {"channels_last": "on"}


def test_alone_is_against_the_baseline_and_each_rung_against_the_one_below() -> None:
    found = {(effect.scope, effect.toggle): effect for effect in effects(Speedups(ladder_report()))}
    last, on_top = found["alone", "channels_last"], found["ladder", "channels_last"]
    assert (last.versus, on_top.versus) == ("baseline", "bf16")
    assert last.speedup.ratio == pytest.approx(0.1 / 0.097)
    assert on_top.speedup.ratio == pytest.approx(0.060 / 0.052)
    assert on_top.memory_bytes == 10 * MIB
    assert found["ladder", "precision"].versus == "baseline"


def test_a_compile_pays_back_after_its_extra_time_over_the_time_saved() -> None:
    found = ladder_report()
    compiled = found.find("compiled")
    assert compile_difference(compiled, found.baseline) == pytest.approx(24.8)
    assert payback_iterations(compiled, found.baseline, Speedups(found)) == pytest.approx(24.8 / (0.100 - 0.080))


def test_a_slower_row_never_pays_back_and_one_without_extra_time_pays_at_once() -> None:
    rows = [
        baseline(0.1, compile_s=1.0),
        row("slow", 0.2, FAST, roles=[rung("precision", 1)], compile_s=9.0),
        row("quick", 0.05, {**FAST, **LAST}, roles=[rung("channels_last", 2)], compile_s=0.5),
        row("unknown", 0.04, {**FAST, **LAST, "compile": "default"}, roles=[rung("compile", 3)], compile_s=None),
    ]
    first, slow, quick, unknown = rows
    speedups = Speedups(report(*rows))
    assert payback_iterations(slow, first, speedups) is None
    assert payback_iterations(quick, slow, speedups) == 0
    assert payback_iterations(unknown, quick, speedups) is compile_difference(unknown, quick) is None


def test_batches_of_different_size_are_compared_per_item() -> None:
    rows = [baseline(0.1, items=8, compile_s=0.0), row("b16", 0.1, FAST, roles=[rung("precision", 1)], items=16)]
    speedups = Speedups(report(*rows))
    assert effects(speedups)[0].speedup.ratio == pytest.approx(2.0)
    assert payback_iterations(rows[1], rows[0], speedups) == pytest.approx(0.2 / 0.1)  # a step of 16 saves 0.1 s


def test_a_failed_rung_is_stepped_over() -> None:
    rows = [
        baseline(0.1),
        row("bad", None, FAST, roles=[rung("precision", 1)], status="crashed", reason="signal 11"),
        row("last", 0.08, LAST, roles=[rung("channels_last", 2)]),
    ]
    bad, last = effects(Speedups(report(*rows)))
    assert (bad.speedup, bad.memory_bytes, bad.reason) == (None, None, "crashed: signal 11")
    assert last.versus == "baseline"
    assert last.speedup.ratio == pytest.approx(1.25)


def test_without_a_baseline_effects_say_why_they_are_unknown() -> None:
    rows = [row("baseline", None, status="oom"), row("p", 0.05, FAST, roles=[rung("precision", 1)])]
    effect = effects(Speedups(report(*rows)))[0]
    assert effect.speedup is effect.memory_bytes is None
    assert "no valid row to compare" in effect.reason


def test_rungs_are_in_the_order_of_their_steps() -> None:
    rows = ladder_report()
    backwards = msgspec.structs.replace(rows, measurements=rows.measurements[::-1])
    assert [toggle for _, toggle in ladder(backwards)] == ["precision", "channels_last", "compile"]


def test_the_peak_of_a_cpu_process_leaves_out_python_and_torch() -> None:
    assert peak_bytes(baseline(memory_mib=1000), "cpu") == 1000 * MIB
    assert needed_bytes(baseline(memory_mib=1000, warmup_mib=1500), "cpu") == 1500 * MIB
    unread = msgspec.structs.replace(baseline().memory, host_resident_at_start_bytes=None)
    assert peak_bytes(msgspec.structs.replace(baseline(), memory=unread), "cpu") is None


def test_memory_is_reserved_bytes_on_cuda_and_resident_beyond_the_start_on_a_cpu() -> None:
    first = baseline(memory_mib=1000)
    other = row("p", 0.05, FAST, roles=[rung("precision", 1)], memory_mib=400)
    other = msgspec.structs.replace(
        other, memory=msgspec.structs.replace(other.memory, host_peak_resident_bytes=900 * MIB)
    )
    assert effects(Speedups(report(first, other, device=GPU)))[0].memory_bytes == -600 * MIB
    assert effects(Speedups(report(first, other, device=CPU)))[0].memory_bytes == -300 * MIB  # 900 - 200 - 1000


def test_alone_is_against_what_it_needed_where_that_was_measured() -> None:
    both = row("both", 0.05, {**FAST, **LAST}, roles=[alone("channels_last")])
    whole = report(baseline(0.1), row("bf16", 0.06, FAST, roles=[alone("precision")]), both)
    effect = next(each for each in effects(Speedups(whole)) if each.toggle == "channels_last")
    assert (effect.versus, effect.speedup.ratio) == ("bf16", pytest.approx(0.06 / 0.05))
    assert next(each for each in effects(Speedups(whole)) if each.toggle == "precision").versus == "baseline"
    without = report(baseline(0.1), both)
    assert [each.versus for each in effects(Speedups(without))] == ["baseline"]
