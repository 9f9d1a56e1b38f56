"""Which of the reports at a path is the baseline of another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpubench.analysis.groups import when
from gpubench.regression.comparability import about, refused
from gpubench.regression.comparison import NamedReport, check, without_baseline
from gpubench.regression.verdicts import Check, Limits
from gpubench.report import store
from gpubench.report.model import Report


@dataclass(frozen=True)
class BaselineChoice:
    """The reports at `path`, a file or a folder, that may be baselines."""

    path: Path
    reports: tuple[NamedReport, ...]
    passed_over: tuple[str, ...]  # a sentence for each file of the folder that is no report

    @classmethod
    def read(cls, path: Path) -> BaselineChoice:
        """What is at `path`; nothing where a folder is not there yet. GpubenchError for a file that is no report."""
        if not path.is_dir() and (path.exists() or path.suffix == ".json"):
            return cls(path, (NamedReport(str(path), store.load(path)),), ())
        reports, passed = store.load_folder(path)
        return cls(path, tuple(NamedReport(str(file), report) for file, report in reports), tuple(passed))

    def check(self, current: NamedReport, limits: Limits, allow: Sequence[str]) -> Check:
        """The verdicts on `current` against its baseline; `incomparable` where there is none."""
        baseline = self.of(current, allow)
        if baseline is None:
            return without_baseline(current, str(self.path), self._none_for(current.report), limits)
        return check(current, baseline, limits, allow)

    def of(self, current: NamedReport, allow: Sequence[str]) -> NamedReport | None:
        """The report of a file; of a folder the finished one of the same workload that differs least from `current`.

        Of several the newest. If some were adopted as baselines (`check --update`), only those count. Neither the
        report itself nor sides of an A/B comparison ever do.
        """
        if self.reports and not self.path.is_dir():
            return self.reports[0]
        mine, itself = about(current.report), Path(current.name).resolve()
        finished = [each for each in self.reports if each.report.finished_at and not each.report.session]
        alike = [each for each in finished if about(each.report) == mine and Path(each.name).resolve() != itself]
        alike = [each for each in alike if each.report.adopted] or alike
        newest = sorted(alike, key=lambda each: when(each.report), reverse=True)
        return min(newest, key=lambda each: len(refused(each.report, current.report, allow)), default=None)

    def _none_for(self, current: Report) -> str:
        """That the folder has no baseline for that report, what it has, and what to do."""
        mine = about(current)
        kinds = sorted({_subject(each.report) for each in self.reports if about(each.report) != mine})
        only = f", only for {', '.join(kinds[:5])}{', ...' if len(kinds) > 5 else ''}" if kinds else ""
        if any(about(each.report) == mine for each in self.reports):
            only += " (the report itself, unfinished runs and sides of an A/B comparison do not count)"
        return f"{self.path} has no baseline for {_subject(current)}{only}. Make one with --update --reason TEXT."


def _subject(report: Report) -> str:
    """`vae inference small, tile_size=64`."""
    *words, _ = about(report)
    return ", ".join([" ".join(words), *(f"{name}={value}" for name, value in report.workload.parameters.items())])
