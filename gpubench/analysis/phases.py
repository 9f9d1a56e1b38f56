"""Which of a row's processes its figures rest on: those of its latest phase, measured after it was picked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from gpubench.report.model import Measurement, Round

Phase = Literal["explore", "runoff", "final"]
PHASES: tuple[Phase, ...] = ("final", "runoff", "explore")  # the freshest first

ENOUGH = 3  # undisturbed rounds that stand by themselves


def of_phase(row: Measurement, phase: Phase | None) -> list[Round]:
    """The rounds of one phase (None: of all) with a usable figure; undisturbed ones alone where there are enough.

    What disturbs is read from outside (other processes, swapping), not from the figure, so leaving such rounds out
    does not choose among results.
    """
    found = [part for part in row.rounds if phase in (None, part.phase) and part.median_s > 0]
    clean = [part for part in found if not is_disturbed(part)]
    return clean if len(clean) >= ENOUGH else found


def shared(rows: Sequence[Measurement], phase: Phase) -> list[dict[int, float]]:
    """Each row's medians by round, over the rounds of `phase` that all of `rows` have with a usable figure.

    Undisturbed rounds alone where there are enough: a round counts as a whole, or rows would be compared over others.
    """
    parts = [{part.index: part for part in row.rounds if part.phase == phase and part.median_s > 0} for row in rows]
    common = sorted(set.intersection(*(set(found) for found in parts))) if parts else []
    clean = [index for index in common if not any(is_disturbed(found[index]) for found in parts)]
    used = clean if len(clean) >= ENOUGH else common
    return [{index: found[index].median_s for index in used} for found in parts]


def is_disturbed(part: Round, but_for: Sequence[str] = ()) -> bool:
    """Whether others kept the machine busy during that round, by a flag whose kind is not in `but_for`."""
    return any(flag.disturbs and flag.kind not in but_for for flag in part.flags)


def latest_phase(row: Measurement) -> Phase:
    """The row's latest phase that has rounds."""
    return next((phase for phase in PHASES if any(part.phase == phase for part in row.rounds)), "explore")


def latest(row: Measurement) -> tuple[list[float], list[float]]:
    """Of the latest phase: the samples in seconds, and the processes' medians."""
    samples, medians, start = list[float](), list[float](), 0
    used = [(part.phase, part.index) for part in of_phase(row, latest_phase(row))]
    for part in row.rounds:
        if (part.phase, part.index) in used or not used:
            samples += row.samples_s[start : start + part.samples]
            medians.append(part.median_s)
        start += part.samples
    return samples, medians


def flagged(row: Measurement, kind: str) -> bool:
    """Whether at least half of the processes that the row's figures rest on carry a flag of that kind."""
    rounds: Sequence[Round] = of_phase(row, latest_phase(row))
    if not rounds:
        return any(flag.kind == kind for flag in row.flags)
    return 2 * sum(any(flag.kind == kind for flag in part.flags) for part in rounds) >= len(rounds)
