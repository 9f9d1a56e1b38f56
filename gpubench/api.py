"""Measure, compare and check from Python. Nothing here prints or exits: errors are raised as `GpubenchError`.

The functions are also attributes of the package: `gpubench.compare(...)`. What they measure runs in processes of its
own, which import the workload: name it as on the command line, by a bundled name (`gpubench workloads`),
`"FILE.py:NAME"` or `"package.module:NAME"`. An object cannot be measured.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpubench.analysis.claims import Finding, findings
from gpubench.analysis.groups import Answer, answers
from gpubench.analysis.guides import chosen
from gpubench.errors import GpubenchError
from gpubench.regression.baseline_choice import BaselineChoice
from gpubench.regression.comparability import check_fields
from gpubench.regression.comparison import NamedReport
from gpubench.regression.comparison import check as check_reports
from gpubench.regression.verdicts import PAIRED_SLOWDOWN, Check, Limits
from gpubench.report import store
from gpubench.report.model import Objective, Report, Value
from gpubench.search.strategy import SearchSpace
from gpubench.study import launch, launch_ab, launch_claims
from gpubench.study.destination import Output, ReportNotSaved
from gpubench.study.launch_ab import AbRequest, AbResult, PairName
from gpubench.study.launch_claims import ClaimsRequest
from gpubench.study.listener import Listener
from gpubench.study.request import Choices, StudyRequest, Values, one_of, values_of
from gpubench.workloads.workload_facts import Mode

__all__ = [
    "AbResult",
    "Answer",
    "Check",
    "ClaimsRequest",
    "Finding",
    "GpubenchError",
    "Limits",
    "Listener",
    "Report",
    "ReportNotSaved",
    "StudyRequest",
    "ab",
    "check",
    "claims",
    "compare",
    "load_report",
    "measure",
    "measure_claims",
    "plan",
    "plan_claims",
    "recommend",
    "sweep",
]


def compare(
    workload: str = "resnet50",
    *,
    mode: Mode | None = None,
    size: str = "auto",
    parameters: Mapping[str, object] | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    preset: str | None = None,
    strategy: str | None = None,
    set: Choices | None = None,
    fix: Mapping[str, Value] | None = None,
    objective: Objective = "fps",
    max_memory_bytes: int | None = None,
    timeout_s: float = 600.0,
    rounds: int = 1,
    final_rounds: int | None = None,
    strict: bool = False,
    allow: Sequence[str] = (),
    seed: int = 0,
    output: Output = None,
    resume: bool = False,
    listener: Listener | None = None,
) -> Report:
    """Measures settings on a model and recommends the best, as `gpubench compare-opts` does.

    Args:
        workload: A bundled name, `"FILE.py:NAME"` or `"package.module:NAME"`.
        mode: `"inference"` or `"training"`; None: the first that the workload has.
        size: `"auto"`, `"huge"`, `"xlarge"`, `"large"`, `"base"`, `"medium"`, `"small"` or `"tiny"`, for workloads that
            have sizes.
        parameters: Further arguments of the workload's function.
        batch_size: Items per step; None: the workload's.
        device: `"auto"`, `"cpu"` or `"cuda:N"`.
        preset: What to try: `"default"`, `"quick"`, `"full"` or the path of a TOML file. None: the default one, or
            only what `set` names.
        strategy: `"ladder"`, `"each"` or `"grid"`; None: the preset's.
        set: Values to try, such as `{"precision": ["bf16-autocast", "bf16-weights"]}`.
        fix: Values held in every row, the baseline included, such as `{"allocator": "tuned"}`.
        objective: What the recommendation is best at: `"fps"`, `"latency"` or `"memory"`.
        max_memory_bytes: Memory limit per configuration; on a GPU with the CUDA context and libraries.
        timeout_s: Time limit per configuration, twice as long where it compiles with an empty cache, and for importing
            and for building the model before the first.
        rounds: Fresh processes per configuration.
        final_rounds: Rounds of the final on fresh data; 0: none; None: 6, or as many as fit in 60 s.
        strict: Rows whose flags speak against their figures fail.
        allow: Flags despite which a row may be recommended: `"unsteady"`, `"contaminated"`, `"swapped"`.
        seed: Of weights, inputs and order of measuring.
        output: The report's file, saved after every process, or a function from the report without rows to that path.
            None: no file stays. A finished report there is kept as `.bak`.
        resume: Go on with the unfinished report at `output`.
        listener: Is told how the run goes; None: no progress.

    Returns:
        The report. A configuration that failed is a row with its status and reason, and
        `report.recommendation` is None where no row is valid.

    Raises:
        GpubenchError: If an argument is invalid, in one sentence; nothing was measured then.
        ReportNotSaved: All was measured and `output` could not be written; its `report` has the result.

    Example:
        >>> report = gpubench.compare("resnet50", size="tiny", set={"precision": "bf16-autocast"}, output="run.json")
        >>> [row.id for row in report.measurements][:2]
        ['baseline', 'precision=bf16-autocast']
    """
    return measure(_request(locals()), output=output, resume=resume, listener=listener)


def sweep(
    toggle: str,
    values: Values = (),
    *,
    workload: str = "resnet50",
    also: Choices | None = None,
    mode: Mode | None = None,
    size: str = "auto",
    parameters: Mapping[str, object] | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    fix: Mapping[str, Value] | None = None,
    objective: Objective = "fps",
    max_memory_bytes: int | None = None,
    timeout_s: float = 600.0,
    rounds: int = 3,
    strict: bool = False,
    allow: Sequence[str] = (),
    seed: int = 0,
    output: Output = None,
    resume: bool = False,
    listener: Listener | None = None,
) -> Report:
    """Measures the values of one toggle, past those that do not fit, as `gpubench batch-sweep` and `tile-sweep` do.

    Args:
        toggle: Its name, such as `"batch_size"`; the first value that runs is the baseline.
        values: What to measure, in this order; empty: all that the toggle offers for this workload.
        also: Further toggles and their values; all combinations are measured.

    The other arguments, the result and the errors are those of `compare`.

    Returns:
        The report; `report.sweep` has the knee (smallest value within 5 % of the best FPS) and the largest that fits.

    Raises:
        GpubenchError: If an argument is invalid, in one sentence.

    Example:
        >>> report = gpubench.sweep("batch_size", [1, 2], workload="resnet50", size="tiny", rounds=1)
        >>> report.sweep.largest_fitting
        2
    """
    values = values_of(values)
    request = _request(locals(), command=f"{toggle.removesuffix('_size')}-sweep", sweep=toggle)
    return measure(request, output=output, resume=resume, listener=listener)


def measure(
    request: StudyRequest, *, output: Output = None, resume: bool = False, listener: Listener | None = None
) -> Report:
    """Measures what `request` asks for; `compare` and `sweep` make one and call this.

    Args, Returns, Raises: as `compare`.

    Example:
        >>> request = gpubench.api.StudyRequest(size="tiny", set={"threads": 1}, final_rounds=0)
        >>> len(gpubench.api.measure(request).measurements)
        2
    """
    return launch.run(request, output, resume, listener or Listener())


def plan(request: StudyRequest) -> SearchSpace:
    """What `measure` would measure and skip, without measuring; it loads torch and the workload to tell.

    Returns:
        The baseline, the planned configurations (`skip` says why one cannot run) and the toggles that do not apply.

    Raises:
        GpubenchError: As `measure`.

    Example:
        >>> request = gpubench.api.StudyRequest(size="tiny", set={"threads": [1]})
        >>> [row.id for row in gpubench.api.plan(request).planned]
        ['threads=1']
    """
    return launch.preview(request)


def ab(
    a: str,
    b: str = ".",
    *,
    workload: str = "resnet50",
    mode: Mode | None = None,
    size: str = "auto",
    parameters: Mapping[str, object] | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    set: Choices | None = None,
    fix: Mapping[str, Value] | None = None,
    limits: Limits = Limits(slowdown=PAIRED_SLOWDOWN),  # noqa: B008 - frozen
    rounds: int = 5,
    time_limit_s: float = 60.0,
    pair: PairName = "process",
    timeout_s: float = 600.0,
    seed: int = 0,
    output: Output = None,
    listener: Listener | None = None,
) -> AbResult:
    """Measures two interpreters, workloads or git revisions against each other, as `gpubench ab` does.

    Args:
        a: What to compare with: a Python interpreter, `"FILE.py:NAME"`, or a git revision of the workload's file.
        b: What is judged: the same choices; `"."` is this interpreter and the workload as it is.
        limits: By how much b may be worse.
        rounds: Rounds before the first decision; at least 5.
        time_limit_s: Time limit per row: rounds continue while it is undecided.
        pair: `"process"`: both sides in one process where they can share it; `"round"`: one process each.
        output: A folder for both reports, a.json and b.json, or a function that gives it. None: no file stays.

    The other arguments are those of `compare`; `set` adds a row for each value.

    Returns:
        The verdict on b (`result.check.verdict`) and the reports of both sides.

    Raises:
        GpubenchError: Where a side is none, cannot be measured, or does other work than the other side.

    Example:
        >>> result = gpubench.ab("my_model.py:make_old", "my_model.py:make_new", time_limit_s=30)
        >>> result.check.verdict
        'unchanged'
    """
    study = _request(locals(), command="ab", strategy="each")
    request = AbRequest(a=a, b=b, study=study, limits=limits, time_limit_s=time_limit_s, pair=pair)
    return launch_ab.run(request, output, listener or Listener())


def check(
    current: Report | Path | str,
    baseline: Report | Path | str,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    allow_different: Sequence[str] = (),
) -> Check:
    """Holds a report against its baseline, as `gpubench check` does: a verdict for each row and metric.

    Args:
        current: The report to check, or its file.
        baseline: A report, its file, or a folder of reports, of which the one nearest to `current` is taken.
        limits: By how much each metric may get worse, as a share.
        allow_different: Fields that may differ, such as `"torch"`.

    Returns:
        The verdicts; `verdict` is `"incomparable"` where the two differ in more than `allow_different`, or a folder
        has no baseline for `current`.

    Raises:
        GpubenchError: Where a file is no report, or a field is unknown.

    Example:
        >>> result = gpubench.check("run.json", "baselines")
        >>> [row.id for row in result.rows if row.verdict == "regressed"]
        []
    """
    check_fields(allow_different)
    judged = (
        NamedReport("current", current)
        if isinstance(current, Report)
        else NamedReport(str(current), store.load(current))
    )
    if isinstance(baseline, Report):
        return check_reports(judged, NamedReport("baseline", baseline), limits, allow_different)
    return BaselineChoice.read(Path(baseline)).check(judged, limits, allow_different)


def recommend(
    reports: Iterable[Report | Path | str], objective: Objective = "fps", max_memory_bytes: int | None = None
) -> list[Answer]:
    """The recommended configuration for each device, workload and mode in `reports`, as `gpubench recommend` finds it.

    Args:
        reports: Reports, or their files. Of several about the same thing, the newest that recommends anything is used.
        objective: `"fps"`: most items per second; `"latency"`, `"memory"`: shortest step or least memory, at equal
            batch size.
        max_memory_bytes: Leave out rows that needed more.

    Returns:
        An answer for each subject; `answer.advice.recommendation` is None where no row is valid, and
        `answer.advice.reasons` says why.

    Raises:
        GpubenchError: Where a file is no report.

    Example:
        >>> (answer,) = gpubench.recommend(["run.json"], objective="latency")
        >>> answer.advice.recommendation.id
        'precision=bf16-autocast'
    """
    one_of("objective", objective, ("fps", "latency", "memory"))
    reports = [reports] if isinstance(reports, Report | Path | str) else reports
    sources = [
        (f"report {number}", each) if isinstance(each, Report) else (str(each), store.load(each))
        for number, each in enumerate(reports, start=1)
    ]
    return answers(sources, objective, max_memory_bytes)


def claims(sources: Iterable[tuple[str, Report]], name: str | None = None) -> dict[str, list[Finding]]:
    """What published guides claim, held against what reports measured, as `gpubench claims` does.

    Args:
        sources: Reports, each with what to call it.
        name: Only the claims of this guide, or about this workload.

    Returns:
        For each device at least one finding for each claim, with a verdict or the sentence why there is none.

    Raises:
        GpubenchError: Where there is no report, or the name is unknown.

    Example:
        >>> found = gpubench.api.claims([("run.json", gpubench.load_report("run.json"))], "cytodl")
        >>> sorted({finding.verdict for findings in found.values() for finding in findings})
        ['not measurable here', 'not measured']
    """
    wanted, groups = chosen(name), defaultdict[str, list[tuple[str, Report]]](list)
    for source, report in sources:
        groups[report.device.name].append((source, report))
    if not groups:
        raise GpubenchError("There is no report to read claims from.", "Measure them with `gpubench claims`.")
    return {device: findings(wanted, members, members[0][1].device.kind) for device, members in groups.items()}


def plan_claims(request: ClaimsRequest) -> list[StudyRequest]:
    """The runs that `measure_claims` would make.

    Raises:
        GpubenchError: As `measure_claims`.

    Example:
        >>> [run.workload for run in gpubench.api.plan_claims(gpubench.api.ClaimsRequest(name="vit_mae"))]
        ['vit_mae', 'vit_mae']
    """
    return [run for run, _ in request.runs()]


def measure_claims(
    request: ClaimsRequest, folder: Path | str, listener: Listener | None = None
) -> list[tuple[str, Report]]:
    """Measures what the claims need, each run with a report in `folder`; what is there already is used.

    Raises:
        GpubenchError: For an unknown guide or workload, and where a report in `folder` cannot be continued.

    Example:
        >>> reports = gpubench.api.measure_claims(gpubench.api.ClaimsRequest(name="gpt", size="tiny"), "claims")
    """
    return list(launch_claims.measure(request.runs(), Path(folder), listener or Listener()))


def load_report(path: Path | str) -> Report:
    """The validated report in a file that gpubench wrote, of this version or an older one.

    Raises:
        GpubenchError: Where there is no readable, valid report; the sentence names the file and the place.

    Example:
        >>> gpubench.load_report("run.json").workload.name
        'resnet50'
    """
    return store.load(path)


def _request(arguments: Mapping[str, Any], **more: Any) -> StudyRequest:
    """The request that a function's `arguments` of the names of its fields make; one that is None has its default."""
    names = {field.name for field in dataclasses.fields(StudyRequest)}
    given = {name: value for name, value in arguments.items() if name in names and value is not None}
    return StudyRequest(**given, **more)
