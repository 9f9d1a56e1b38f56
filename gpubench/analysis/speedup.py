"""The speedup of one row of a report over another, from the latest phase that both were measured in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from gpubench.report.model import Measurement, Report
from gpubench.stats.estimate import Estimate, paired, separate, two_way_error
from gpubench.stats.processes import PHASES, Phase
from gpubench.stats.spread import Spreads, spreads


@dataclass(frozen=True)
class Speedups:
    """How much faster rows of one report are than others of it. What the comparisons share is computed once."""

    report: Report

    @cached_property
    def spread(self) -> Spreads:
        """How much identical processes differ. Rows are minutes apart, so it includes the machine's drift."""
        return spreads([self.report], across_phases=True)

    @cached_property
    def control(self) -> Measurement | None:
        """The A/A control, where it ran."""
        return next((row for row in self.report.measurements if row.is_control and row.status == "ok"), None)

    @cached_property
    def _pooled(self) -> dict[Phase, tuple[float, int, int] | None]:
        return {phase: two_way_error(self.report.measurements, phase) for phase in PHASES}

    def of(self, row: Measurement, versus: Measurement, phases: Sequence[Phase] = PHASES) -> Estimate | None:
        """The speedup of `row` over `versus`; None where either has no figure, and of a row over itself.

        The first of `phases` counts that has both: the exploring figure of a winner is too high, because it was
        selected by it. Paired by round where there are at least 2 rounds.
        """
        if versus.id == row.id:
            return None
        estimates = (self.paired(row, versus, phase) for phase in phases)
        by_round = next((estimate for estimate in estimates if estimate), None)
        apart = (separate(row, versus, phase, self.spread) for phase in phases)
        return by_round or next((estimate for estimate in apart if estimate), None)

    def paired(self, row: Measurement, versus: Measurement, phase: Phase) -> Estimate | None:
        """As `estimate.paired`, with the A/A difference of those rounds as the bias, if one row has a control."""
        estimate, control = paired(row, versus, phase, pooled=self._pooled[phase]), self.control
        if estimate is None or control is None or control.id in (row.id, versus.id):
            return estimate
        twins = (twin for twin in (row, versus) if twin.configuration == control.configuration)
        same = next((bias for twin in twins if (bias := paired(control, twin, phase))), None)
        return replace(estimate, bias=abs(same.log_ratio)) if same else estimate
