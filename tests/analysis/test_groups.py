from __future__ import annotations

import msgspec

from gpubench.analysis.groups import answers
from gpubench.report.model import Report
from tests.reports import CPU, GPU, baseline, report, row


def run(step_s: float, created_at: str, **options: object) -> Report:
    return report(baseline(), row("fast", step_s, {"precision": "bf16-autocast"}), created_at=created_at, **options)  # type: ignore[arg-type]


def test_the_newest_report_about_one_thing_answers() -> None:
    (answer,) = answers([("old", run(0.02, "2026-01-01")), ("new", run(0.05, "2026-01-02"))], "fps")
    assert (answer.source, answer.others) == ("new", ("old",))
    assert answer.advice.recommendation.speedup == 2  # from its own run, not from the faster older one


def test_a_finished_report_goes_before_a_newer_unfinished_one() -> None:
    (answer,) = answers([("cut", run(0.02, "2026-01-02", finished=False)), ("whole", run(0.05, "2026-01-01"))], "fps")
    assert answer.source == "whole"


def test_a_report_without_a_valid_row_gives_way() -> None:
    failed = report(row("baseline", None, status="oom"), created_at="2026-01-03")
    (answer,) = answers([("good", run(0.05, "2026-01-01")), ("failed", failed)], "fps")
    assert answer.source == "good"
    (nothing,) = answers([("failed", failed)], "fps")
    assert nothing.advice.recommendation is None


def test_device_workload_mode_size_batch_and_parameters_each_get_an_answer() -> None:
    other_card = msgspec.structs.replace(GPU, uuid="GPU-1")
    variants = [
        {},
        {"device": CPU},
        {"device": other_card},
        {"reference": "unet3d"},
        {"mode": "training"},
        {"size": "base"},
        {"batch_size": 2},
        {"parameters": {"task": "decode"}},
        {"source_hash": "abc"},
    ]
    sources = [(str(index), run(0.05, "2026-01-01", **options)) for index, options in enumerate(variants)]
    assert len(answers(sources, "fps")) == len(variants)
