"""The sentences of a recommendation: why this row, what each technique gains and costs, and what was excluded."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass

from gpubench.analysis.effects import (
    ToggleEffect,
    changed,
    compile_difference,
    effects,
    memory_difference,
    payback_iterations,
    shown,
)
from gpubench.analysis.eligibility import MIN_ROUNDS, cautions, gate, gating
from gpubench.analysis.peak_memory import MEANING, RESOLUTION_BYTES, grows, peak_bytes
from gpubench.analysis.ranking import Ranking
from gpubench.report.model import Configuration, Measurement, Report
from gpubench.stats.estimate import Estimate
from gpubench.text import clause, plural, plural_of
from gpubench.toggles.toggle import Scope
from gpubench.toggles.traits import reference_values
from gpubench.units import format_bytes, format_duration, format_percent, significant

BEST = {"fps": "the most {items} per second", "latency": "the shortest step", "memory": "the least memory"}
SOURCES = {
    "final": "over N of fresh processes with the baseline, measured after selection, so free of selection bias",
    "runoff": "over N of fresh processes that also selected it, so the figure may be slightly high",
    "explore": "from exploring alone: it was selected by this figure, which is therefore biased upwards, and was not "
    "measured again",
}
MANY = 5  # names in a sentence; the rest are counted


@dataclass(frozen=True)
class Choice:
    """What `reasons` describes. `tied` includes `chosen`."""

    ranking: Ranking
    chosen: Measurement
    tied: list[Measurement]
    gain: Estimate | None  # over the baseline
    control: Estimate | None  # A/A: the baseline against itself, in the same rounds
    beaten: Measurement | None  # the former choice, which was no faster than the baseline in the final

    @property
    def report(self) -> Report:
        """The report of the rows."""
        return self.ranking.report


def reasons(choice: Choice) -> list[str]:
    """Sentences: the choice, its speed and the source of the figure, noise, techniques, cost, ties."""
    known = [f"Note: {caution}." for caution in cautions(choice.chosen)]
    said = [_choice(choice), *_speed(choice), *_control(choice), _noise(choice), *known]
    return [*said, *_techniques(choice), *_cost(choice), *_ties(choice)]


def nothing(report: Report, excluded: dict[str, str]) -> list[str]:
    """Why nothing can be recommended."""
    if not report.measurements:
        return ["Nothing can be recommended: the report has no measurements."]
    count = plural(len(report.measurements), "row")
    return [f"Nothing can be recommended: none of the {count} is valid.", *left_out(report, excluded)]


def no_baseline(baseline: Measurement, why: str) -> str:
    """Why nothing can be recommended over that baseline, and what to do."""
    remedy = next((flag.about.remedy for flag in gating(baseline) if not flag.about.repeats), "Measure again.")
    if baseline.status != "ok":
        remedy = "Mend that, or measure from another baseline: --fix holds a toggle at another value in every row."
    return f"Nothing is recommended, because the baseline is not reliable: {why.rstrip('.')}. {remedy}"


def left_out(report: Report, excluded: dict[str, str]) -> list[str]:
    """Why rows were excluded: a sentence for each row with status ok, and one for all others by status."""
    rows = {row.id: row for row in report.measurements}
    sentences = [
        f"Excluded: {name(report, rows[id])}, because {clause(why)}."
        for id, why in excluded.items()
        if rows[id].status == "ok"
    ]
    failed: dict[str, list[str]] = defaultdict(list)
    for id in excluded:
        if rows[id].status not in ("ok", "skipped"):
            failed[rows[id].status].append(id)
    if failed:
        parts = [f"{len(ids)} {status} ({_listing(ids)})" for status, ids in failed.items()]
        sentences.append(f"Excluded as invalid: {', '.join(parts)}.")
    skipped = Counter(rows[id].status for id in excluded)["skipped"]
    if skipped:
        sentences.append(
            f"{plural(skipped, 'configuration was', 'configurations were')} skipped because they cannot run here."
        )
    return sentences


def describe(configuration: Configuration) -> str:
    """`precision=bf16-weights, compile=default`, or `the baseline` where nothing is changed."""
    return ", ".join(f"{toggle}={value}" for toggle, value in configuration.items()) or "the baseline"


def name(report: Report, row: Measurement) -> str:
    """The row's changed toggles as `describe` writes them, and its id where that differs."""
    text = describe(shown(row, report.baseline))
    return text if row.id in (text.replace(", ", ","), report.plan.baseline) else f"{text} ({row.id})"


def _choice(choice: Choice) -> str:
    report, chosen, best = choice.report, choice.chosen, choice.ranking.rows[0]
    superlative = BEST[choice.ranking.objective].format(items=plural_of(report.workload.item))
    if choice.beaten is not None:
        return f"Keep the baseline: {name(report, choice.beaten)} was selected, but on fresh data it was no faster."
    if chosen.id == report.plan.baseline and not any(role.kind == "sweep" for role in chosen.roles):
        return "Keep the baseline: no valid row is better by more than the noise."
    if chosen.id == best.id:
        return f"{name(report, chosen)} has {superlative} of all valid rows."
    tied = plural(len(choice.tied), "tied row")
    return (
        f"{name(report, chosen)} is the simplest of the {tied} (fewest changed toggles, then "
        f"without compilation, then least memory); {name(report, best)} has {superlative}, by less than the noise."
    )


def _speed(choice: Choice) -> list[str]:
    gain, baseline = choice.gain, choice.report.plan.baseline
    if choice.chosen.id == baseline:
        return []
    if gain is None:
        row = choice.report.baseline
        why = (gate(row) if row else "it is not in the report") or "they share no phase"
        return [f"Its speedup is unknown, because the baseline cannot be compared: {why}."]
    interval = f"95 % interval {significant(gain.low)} to {significant(gain.high)}"
    if gain.rounds < MIN_ROUNDS:
        interval = f"roughly {significant(gain.low)} to {significant(gain.high)}, from few processes"
    source = SOURCES[gain.phase].replace("over N", f"over {plural(gain.rounds, 'round')}")
    sentences = [f"It is {significant(gain.ratio)}x as fast per item as the baseline, {interval}; {source}."]
    if choice.ranking.phase == "explore" and gain.phase == "runoff" and choice.ranking.objective != "memory":
        sentences.append(
            f"Rows were ranked by exploring, because the best one for the objective {choice.ranking.objective} was not "
            "in the runoff."
        )
    if gain.low <= 1 <= gain.high:
        sentences.append("The interval includes 1, so it may be no faster.")
    return [*sentences, *_versus_strict(choice)]


def _versus_strict(choice: Choice) -> list[str]:
    """The speed beside what outputs are compared with, where the baseline is another and that was measured too."""
    report, baseline = choice.report, choice.report.baseline
    scope = Scope(device=report.device, workload=report.workload, torch_version=(0, 0))
    sentences = []
    for toggle, value in reference_values(scope).items():
        if baseline is None or baseline.configuration.get(toggle, value) == value:
            continue
        configuration = {**baseline.configuration, toggle: value}
        row = next((each for each in report.measurements if each.configuration == configuration), None)
        versus = choice.ranking.speedups.of(choice.chosen, row) if row is not None and gate(row) is None else None
        if versus is not None:
            sentences.append(f"Beside {toggle}={value} alone it is {significant(versus.ratio)}x as fast.")
    return sentences


def _control(choice: Choice) -> list[str]:
    """The baseline against itself: the error of the harness and of the machine."""
    control = choice.control
    if control is None or control.rounds < MIN_ROUNDS:
        return []
    interval = f"95 % interval {significant(control.low, 4)} to {significant(control.high, 4)}"
    sentence = f"A/A control (baseline vs itself, same rounds): {significant(control.ratio, 4)}x, {interval}."
    if control.low <= 1 <= control.high:
        return [sentence]
    return [
        f"{sentence} It excludes 1: expected by chance in 1 of 20 runs; otherwise this machine biases the "
        "rounds. The interval above is at least as wide as this difference."
    ]


def _noise(choice: Choice) -> str:
    if choice.ranking.objective == "memory":
        return (
            f"Rows are tied whose memory differs by less than {format_bytes(RESOLUTION_BYTES)}, or by no more than "
            "repeats of one configuration."
        )
    rows = [choice.chosen, choice.ranking.rows[0], *filter(None, [choice.ranking.report.baseline])]
    spread = choice.ranking.speedups.spread.of(*rows)
    if not spread.assumed:
        return (
            "Noise: measured; identical configurations differ from process to process by "
            f"{format_percent(spread.deviation, sign=False)} (standard deviation, {plural(spread.repeats, 'repeat')})."
        )
    seen = "no configuration was measured in more than one process"
    if spread.repeats:
        seen = f"only {plural(spread.repeats, 'repeat')} of a configuration was measured"
    apart = format_percent(math.sqrt(2) * spread.deviation, sign=False)
    return (
        f"Noise: assumed, because {seen}; two identical processes differ by {apart} (standard deviation). Use "
        "--rounds 3 to measure it."
    )


def _techniques(choice: Choice) -> list[str]:
    """The gain of each technique in the chosen configuration, alone and in the ladder."""
    wanted = changed(choice.chosen, choice.report.baseline)
    found = [
        effect for effect in effects(choice.ranking.speedups) if wanted.get(effect.toggle) == effect.value is not None
    ]
    sentences = []
    for toggle, value in wanted.items():
        parts = [_effect(effect) for effect in found if effect.toggle == toggle]
        if parts:
            sentences.append(f"{toggle}={value}: {'; '.join(parts)}.")
    apart = {effect.toggle for effect in found}
    unknown = {toggle: value for toggle, value in wanted.items() if toggle not in apart}
    if unknown and len(wanted) > 1:
        sentences.append(f"Not measured separately: {describe(unknown)}.")
    return sentences


def _effect(effect: ToggleEffect) -> str:
    where = "alone" if effect.scope == "alone" else "in the ladder, on top of those before it"
    if effect.speedup is None:
        return f"{where} unknown ({effect.reason or 'not measured'})"
    cost = f", memory {signed_bytes(effect.memory_bytes)}" if effect.memory_bytes is not None else ""
    return f"{significant(effect.speedup.ratio)}x {where}{cost}"


def _cost(choice: Choice) -> list[str]:
    chosen, baseline, kind = choice.chosen, choice.report.baseline, choice.report.device.kind
    if baseline is None or chosen.id == baseline.id or baseline.status != "ok":
        return []
    difference, peak = memory_difference(chosen, baseline, kind), peak_bytes(chosen, kind)
    if difference is None or peak is None:
        why = "grows with every step" if grows(chosen) or grows(baseline) else "was not measured"
        memory = f"Memory: unknown, because its own or the baseline's {why}."
    else:
        memory = f"Memory: {format_bytes(peak)}, {signed_bytes(difference)} versus the baseline ({MEANING[kind]})."
    extra = compile_difference(chosen, baseline)
    if extra is None:
        return [memory, "Compile time: unknown, because the first call was not timed."]
    if extra <= 0:
        return [memory, "Compile time: none, its first call takes no longer than the baseline's."]
    payback = payback_iterations(chosen, baseline, choice.ranking.speedups)
    paid = "never pays off: it is not faster"
    if payback is not None:
        paid = f"pays off after {plural(max(round(payback), 1), 'iteration')}"
    return [memory, f"Its first call takes {format_duration(extra)} longer, which {paid}."]


def _ties(choice: Choice) -> list[str]:
    others = [name(choice.report, row) for row in choice.tied if row.id != choice.chosen.id]
    sentences = [f"Tied with it (difference within the noise): {_listing(others, '; ')}."] if others else []
    missed = [row for row in choice.ranking.contenders() if row not in choice.ranking.rows]
    if missed and choice.ranking.phase == "runoff":
        names = _listing([name(choice.report, row) for row in missed], "; ")
        sentences.append(f"Tied with the best while exploring, but not measured in the runoff: {names}.")
    return sentences


def _listing(names: list[str], separator: str = ", ") -> str:
    more = f" and {len(names) - MANY} more" if len(names) > MANY else ""
    return separator.join(names[:MANY]) + more


def signed_bytes(difference: int) -> str:
    """`+20.0 MiB`, `-1.00 GiB`, `unchanged`."""
    return f"{'+' if difference > 0 else ''}{format_bytes(difference)}" if difference else "unchanged"
