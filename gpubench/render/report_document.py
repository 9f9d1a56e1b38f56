"""Reports and recommendations as documents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import msgspec

from gpubench.analysis.eligibility import MIN_ROUNDS
from gpubench.analysis.groups import Answer
from gpubench.analysis.reasons import describe
from gpubench.analysis.table import Row, frame, lines, rows
from gpubench.flags import Flag
from gpubench.metrics import all_metrics
from gpubench.render.document import Column, Content, Document, Note, Recommended, RowGroup, Table, TableRow, table
from gpubench.report.model import Recommendation, Report
from gpubench.report.store import encode
from gpubench.text import plural
from gpubench.units import format_bytes, significant

Code = Callable[[Report, Recommendation | None], str]  # what switches a recommendation on
GROUPS = {"baseline": "", "alone": "alone:", "ladder": "the ladder:", "sweep": "the sweep:", "other": "others:"}


def reports_content(reports: Sequence[Report], code: Code) -> Content:
    """Whole reports."""

    def data() -> object:
        raw = [msgspec.Raw(encode(report)) for report in reports]
        return raw[0] if len(raw) == 1 else raw

    return Content(
        "report", lambda: [report_document(report, code) for report in reports], data, lambda: frame(*reports)
    )


def answers_content(answers: Sequence[Answer], code: Code) -> Content:
    """What `recommend` says of several subjects."""
    return Content(
        "answer",
        lambda: [answer_document(answer, code) for answer in answers],
        lambda: [_answer_data(answer, code) for answer in answers],
    )


def report_document(report: Report, code: Code) -> Document:
    """Heading, table, remarks and the report's recommendation with its code."""
    title, where = heading(report)
    chosen = report.recommendation
    shown = report_table(report, chosen.id if chosen else None)
    return Document(title, (where,), shown, tuple(map(Note, remarks(report))), _recommended(report, chosen, code))


def answer_document(answer: Answer, code: Code) -> Document:
    """What one subject's reports recommend, or why they recommend nothing."""
    title, where = heading(answer.report)
    chosen = _recommended(answer.report, answer.advice.recommendation, code)
    reasons = () if chosen else tuple(map(Note, answer.advice.reasons))
    return Document(title, (where, f"from {answer.source}"), notes=reasons, recommended=chosen)


def report_table(report: Report, chosen: str | None = None) -> Table | None:
    """The rows that ran, grouped, with every metric that has a heading; the row of id `chosen` is marked."""
    metrics = [metric for metric in all_metrics().values() if metric.heading]
    columns = [
        Column("number", "#"),
        Column("configuration", "configuration", is_figure=False, folds=True),
        *(Column(metric.name, metric.heading, width=metric.width) for metric in metrics),
        Column("status", "status", is_figure=False),
    ]
    groups = []
    for name, members in lines(report).items():
        table_rows = []
        for line in members:
            figures = {metric.name: metric.text(report, line.row) for metric in metrics}
            labels = {"number": str(line.row.number), "configuration": line.label, "status": _status(line.row)}
            is_chosen = line.row.measurement.id == chosen
            table_rows.append(TableRow(labels | figures, labels["status"], is_chosen))
        groups.append(RowGroup(tuple(table_rows), GROUPS[name]))
    return table(columns, groups)


def heading(report: Report) -> tuple[str, str]:
    """The workload; and the device with its software."""
    workload, device = report.workload, report.device
    parameters = "".join(f", {name} {value}" for name, value in workload.parameters.items())
    title = f"{workload.name} {workload.mode}, size {workload.size}{parameters}, batch size {workload.batch_size}"
    parts = [device.name if device.cores is None else f"{device.name} ({plural(device.cores, 'core')})"]
    if device.uuid:
        parts.append(device.uuid)
    if device.total_memory_bytes is not None:
        parts.append(format_bytes(device.total_memory_bytes))
    if device.driver_version:
        parts.append(f"driver {device.driver_version}")
    return title, ", ".join([*parts, f"torch {report.environment.torch}"])


def remarks(report: Report) -> list[str]:
    """Sentences on rows, the run's own notes, the end of a sweep, and whether the run was cut off."""
    table_rows = rows(report)
    texts = [*_notes(table_rows), *report.notes]
    if any(row.speedup and row.speedup.rounds < MIN_ROUNDS for row in table_rows):
        texts.insert(
            0,
            "~: single process; do not compare FPS across rows. Figures with an interval are from interleaved rounds.",
        )
    if report.sweep:
        texts.append(report.sweep.reason)
    if report.finished_at is None:
        missing = len(set(report.plan.configurations) - {row.id for row in report.measurements})
        advice = "Continue it with --resume." if report.session is None else "Start it again: ab cannot be resumed."
        texts.append(f"The run was cut off: {plural(missing, 'configuration')} not measured. {advice}")
    return texts


def _status(row: Row) -> str:
    """The status; `ok*` where a note says more."""
    return row.measurement.status + ("*" if row.measurement.flags and row.measurement.status == "ok" else "")


def _notes(rows: list[Row]) -> list[str]:
    """A sentence for each row that is not `ok` or has a reason, and one for each kind of flag on rows that are."""
    found, flagged = [], defaultdict(list)
    for row in rows:
        measurement, reason = row.measurement, row.measurement.reason.rstrip(".")
        if measurement.status == "skipped":
            # It never ran and stands in no table, so it is named by what it would have changed.
            changes = describe(row.changed)
            name = "" if reason.startswith(changes) else f" {changes}"
            found.append(f"skipped{name}: {reason or 'no reason recorded'}")
        elif measurement.status != "ok":
            found.append(f"#{row.number} {measurement.status}: {reason or 'no reason recorded'}")
        elif reason:
            found.append(f"#{row.number}: {reason}")
        if measurement.status == "ok":
            for flag in measurement.flags:
                flagged[flag.label].append((row.number, flag))
    return [*found, *map(_flags, flagged.values())]


def _flags(members: list[tuple[int, Flag]]) -> str:
    """`ok*: unsteady: 4.0 s (#2)`; where rows differ in the details only the kind, as `ok*: unsteady (#2, #5)`."""
    kinds = {flag for _, flag in members}
    text = kinds.pop() if len(kinds) == 1 else members[0][1].label
    return f"ok*: {text} ({', '.join(dict.fromkeys(f'#{number}' for number, _ in members))})"


def gain(recommendation: Recommendation) -> str:
    """The speedup with its interval, and versus what."""
    if recommendation.id == recommendation.versus:
        return "It is the baseline itself."
    if recommendation.speedup is None:
        return f"Speedup versus {recommendation.versus} not known."
    interval = ""
    if recommendation.speedup_low is not None and recommendation.speedup_high is not None:
        interval = f" ({significant(recommendation.speedup_low)} to {significant(recommendation.speedup_high)})"
    rounds = f" over {plural(recommendation.rounds, 'round')} of fresh processes" if recommendation.rounds else ""
    return f"Speedup {significant(recommendation.speedup)}x{interval} versus {recommendation.versus}{rounds}."


def _recommended(report: Report, recommendation: Recommendation | None, code: Code) -> Recommended | None:
    if recommendation is None:
        return None
    row = next((each for each in rows(report) if each.measurement.id == recommendation.id), None)
    name = f"{describe(row.changed)} (#{row.number})" if row else describe(recommendation.configuration)
    return Recommended(
        headline=f"Recommended for {recommendation.objective}: {name}",
        detail=gain(recommendation),
        reasons=tuple(map(Note, recommendation.reasons)),
        code=tuple(code(report, recommendation).splitlines()),
    )


def _answer_data(answer: Answer, code: Code) -> dict[str, object]:
    report, workload, recommendation = answer.report, answer.report.workload, answer.advice.recommendation
    return {
        "source": answer.source,
        "device": report.device,
        "workload": workload.name,
        "mode": workload.mode,
        "size": workload.size,
        "batch_size": workload.batch_size,
        "recommendation": recommendation,
        "reasons": answer.advice.reasons,
        "excluded": answer.advice.excluded,
        "code": code(report, recommendation),
        "not_used": list(answer.others),
    }
