"""A step that leaves out what it has computed before is told, by fresh inputs, and no other kind of step is."""

from __future__ import annotations

import pytest

from gpubench.flags import MEMOIZED
from gpubench.measure.trace import Trace, trace_step
from gpubench.worker.memoized import memoized
from gpubench.worker.messages import EvidenceCollected
from tests.worker.test_repeatability import made, prepared

__all__ = ["made"]  # the fixture


def collected(name: str, mode: str = "inference", **more: str) -> EvidenceCollected:
    """The evidence of a workload in odd_models.py after its timed batches were seen."""
    parameters = {key: more.pop(key) for key in ("key", "steps") if key in more}
    model, _ = prepared(None, name, mode, more, **parameters)
    model.sample(None)
    return model.collect_evidence()


def told(evidence: EvidenceCollected) -> list[str]:
    return [flag.detail for flag in evidence.flags if flag.kind == MEMOIZED.name]


@pytest.mark.parametrize("key", ["id", "place", "value"])
def test_whatever_a_cache_goes_by_it_is_told(key: str) -> None:
    (detail,) = told(collected("remembers", key=key))
    assert "on a timed input a step runs" in detail


def test_what_a_training_step_keeps_of_a_second_network_is_told() -> None:
    assert told(collected("teacher", "training"))


def test_evidence_is_read_in_a_whole_step() -> None:
    evidence = collected("remembers", precision="bf16-autocast")
    assert told(evidence)
    assert [each.took_effect for each in evidence.evidence] == [True]  # nothing ran in a timed one


def test_compiled_code_that_is_left_out_is_told() -> None:
    evidence = collected("remembers_a_product", compile="default")
    assert told(evidence)
    assert [each.took_effect for each in evidence.evidence] == [True]


@pytest.mark.parametrize(("name", "steps"), [("plain", ""), ("as_the_data_ask", ""), ("every", "2"), ("every", "3")])
def test_other_steps_are_not_accused(name: str, steps: str) -> None:
    for _ in range(3 if steps else 1):  # whichever step of the period the first one is
        assert told(collected(name, **({"steps": steps} if steps else {}))) == []


def test_every_place_in_a_period_is_tried() -> None:
    model, _ = prepared(None, "every", steps="2")
    for _ in range(4):
        seen = trace_step(model.stepper.step, cuda=False)
        assert memoized(model.stepper, seen, 0)[0] == ""
        model.stepper.step()
    assert len(model.stepper.context.batches) == 2  # as before


def test_most_models_are_asked_for_one_more_step() -> None:
    model, _ = prepared(None, "plain")
    seen, steps = trace_step(model.stepper.step, cuda=False), model.stepper.steps
    left_out, trace = memoized(model.stepper, seen, 0)
    assert (left_out, trace is seen, model.stepper.steps - steps) == ("", True, 1)
    assert isinstance(trace, Trace)
