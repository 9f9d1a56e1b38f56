"""How large the numbers are that layers give in less than fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from gpubench.measure.value_range import IN_FP32, NOTHING_LOWER, watch
from gpubench.report.model import Protocol, ValueRange
from gpubench.worker.messages import Prepare, WorkloadChoice
from gpubench.worker.prepared_model import PreparedModel
from tests.running import MODELS

HALF = torch.finfo(torch.float16)


class Planted(nn.Module):
    """A layer that gives four values whatever comes."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.values, dtype=x.dtype)


def seen(*values: float, dtype: torch.dtype = torch.float16) -> ValueRange | None:
    model = nn.Sequential(nn.Identity(), Planted(*values))
    return watch(model, lambda: model(torch.ones(4, dtype=dtype)))


def test_a_layer_that_reaches_40000_in_fp16_is_seen() -> None:
    assert seen(1.0, -40000.0, 0.0, 3.0) == ValueRange(
        dtypes=["float16"], largest_activation=40000.0, largest_in="1", near_overflow=1 / 8, subnormal=0.0
    )


def test_half_of_the_range_is_the_limit() -> None:
    found = seen(float(HALF.max) / 2, 0.0, 0.0, 0.0)
    assert found is not None
    assert found.near_overflow == 0.0
    wide = seen(1e6, 0.0, 0.0, 0.0, dtype=torch.bfloat16)  # has the range of fp32
    assert wide is not None
    assert (wide.dtypes, wide.near_overflow) == (["bfloat16"], 0.0)


def test_what_is_infinite_or_no_number_counts_as_overflown_and_is_not_the_largest() -> None:
    found = seen(float("inf"), float("nan"), 2.0, -1e6)
    assert found is not None
    assert (found.near_overflow, found.largest_activation) == (3 / 8, 2.0)


def test_values_too_small_for_full_accuracy_are_told_from_zeros() -> None:
    found = seen(float(HALF.tiny) / 2, 0.0, 1.0, float(HALF.tiny))
    assert found is not None
    assert found.subnormal == 1 / 8


def test_of_fp32_there_is_nothing_to_see() -> None:
    assert seen(1e30, 0.0, 0.0, 0.0, dtype=torch.float32) is None


def test_compiled_code_is_watched_eagerly_and_stays_compiled() -> None:
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> object:
        calls.append(1)
        return graph.forward

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).half()
    whole = nn.Module()
    whole.inner = model
    forward = model.forward

    def call(input: torch.Tensor) -> torch.Tensor:
        return forward(input)  # type: ignore[no-any-return, no-untyped-call]

    model.forward = torch.compile(call, backend=backend)  # type: ignore[method-assign]
    batch = torch.ones(2, 4, dtype=torch.float16)
    model(batch)
    found = watch(whole, lambda: model(batch))
    assert found is not None
    assert found.largest_in.startswith("inner.")
    model(batch)
    assert len(calls) == 1  # not compiled again, with hooks or without
    assert not torch.nn.modules.module._global_forward_hooks


def test_hooks_go_even_where_the_step_fails() -> None:
    with pytest.raises(ZeroDivisionError):
        watch(nn.ReLU(), lambda: 1 / 0)
    assert not torch.nn.modules.module._global_forward_hooks


@pytest.mark.parametrize(
    ("precision", "tolerance", "reason"),
    [("fp32", 1e-3, IN_FP32), ("fp32", 0.06, NOTHING_LOWER), ("bf16-autocast", 0.06, "")],
)
def test_a_row_that_computes_below_fp32_has_a_range(
    precision: str, tolerance: float, reason: str, tmp_path: Path
) -> None:
    choice = WorkloadChoice(reference=f"{MODELS}:good", size=None, parameters={}, mode="inference")
    request = Prepare(
        model=0, choice=choice, device="cpu", configuration={"precision": precision}, tolerance=tolerance,
        protocol=Protocol(warmup_min_s=0.0, min_sampling_s=0.0, max_sampling_s=0.05, warmup_max_s=0.1),
        compile_cache=str(tmp_path), reference_folder=None,
    )  # fmt: skip
    resident = PreparedModel(request, lambda _: None)
    resident.prepare()
    answer = resident.see_range()
    assert answer.reason == reason
    assert (answer.found is None) is bool(reason)
    if answer.found:
        assert answer.found.dtypes == ["bfloat16"]
        assert answer.found.largest_activation > 0
        assert answer.found.largest_in
