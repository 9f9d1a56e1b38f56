"""Reports and recommendations as documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gpubench.analysis.groups import Answer
from gpubench.analysis.table import frame, lines
from gpubench.metrics import all_metrics
from gpubench.render.cells import status
from gpubench.render.document import Column, Content, Document, Group, Recommended, Table, TableRow, notes, table
from gpubench.render.heading import GROUPS, heading, remarks, verdict
from gpubench.report.model import Recommendation, Report
from gpubench.report.store import encode

Code = Callable[[Report, Recommendation], str]


def no_code(report: Report, recommendation: Recommendation) -> str:
    """No code for any recommendation."""
    return ""


def reports_content(reports: Sequence[Report], code: Code = no_code) -> Content:
    """Whole reports; `code` gives what switches a recommendation on."""
    import msgspec

    def data() -> object:
        raw = [msgspec.Raw(encode(report)) for report in reports]
        return raw[0] if len(raw) == 1 else raw

    return Content(
        "report", lambda: [report_document(report, code) for report in reports], data, lambda: frame(*reports)
    )


def answers_content(answers: Sequence[Answer], code: Code = no_code) -> Content:
    """What `recommend` says of several subjects."""
    return Content(
        "answer",
        lambda: [answer_document(answer, code) for answer in answers],
        lambda: [_answer_data(answer, code) for answer in answers],
    )


def report_document(report: Report, code: Code = no_code) -> Document:
    """Heading, table, remarks and the report's recommendation with its code."""
    title, *subtitle = heading(report)
    recommendation = report.recommendation
    blocks = (
        *report_table(report, recommendation.id if recommendation else None),
        *notes(*remarks(report)),
        *((_recommended(report, recommendation, code),) if recommendation else ()),
    )
    return Document(title, tuple(subtitle), blocks)


def report_table(report: Report, chosen: str | None = None) -> tuple[Table, ...]:
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
        rows = []
        for line in members:
            cells = {
                "number": str(line.row.number),
                "configuration": line.label,
                **{metric.name: metric.text(report, line.row) for metric in metrics},
                "status": status(line.row),
            }
            rows.append(TableRow(cells, cells["status"], is_chosen=line.row.measurement.id == chosen))
        groups.append(Group(tuple(rows), GROUPS[name]))
    return table(columns, groups)


def answer_document(answer: Answer, code: Code = no_code) -> Document:
    """What one subject's reports recommend, or why they recommend nothing."""
    title, *subtitle = heading(answer.report)
    recommendation = answer.advice.recommendation
    return Document(
        title,
        (*subtitle, f"from {answer.source}"),
        (_recommended(answer.report, recommendation, code),) if recommendation else notes(*answer.advice.reasons),
    )


def _recommended(report: Report, recommendation: Recommendation, code: Code) -> Recommended:
    headline, detail = verdict(report, recommendation)
    snippet = code(report, recommendation)
    return Recommended(headline, detail, tuple(recommendation.reasons), tuple(snippet.splitlines()))


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
        "code": code(report, recommendation) if recommendation else "",
        "not_used": list(answer.others),
    }
