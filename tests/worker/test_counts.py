"""What a step did, counted from its trace."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from gpubench.measure.trace import Kernel, Operator, Trace
from gpubench.report.model import StepCounts
from gpubench.toggles.model_context import ModelContext
from gpubench.toggles.toggle import EvidenceResult
from gpubench.worker.counts import step_counts
from gpubench.workloads.workload import Workload


def context(trace: Trace | None, device: str = "cuda") -> ModelContext:
    work = Workload(name="net", item="row", batch_size=2, build=nn.ReLU, inputs=lambda size, generator: ())
    made = ModelContext(
        workload=work,
        mode="inference",
        device=torch.device(device),
        batch_size=2,
        configuration={},
        model=nn.ReLU(),
    )
    made.trace = trace
    return made


def product(dtype: str, flops: int | None) -> Operator:
    return Operator("aten::mm", (dtype,), ((),), ((),), flops=flops)


ON_A_GPU = Trace(
    operators=(
        product("c10::BFloat16", 88),
        dataclasses.replace(product("float", 12), name="aten::bmm"),
        Operator("SumBackward0", ("float",), ((),), ((),)),
        Operator("aten::add", ("float",), ((),), ((),), depth=1),
    ),
    kernels=(Kernel("a", 1e-6), Kernel("b", 1e-6)),
    names=frozenset({"cudaLaunchKernel"}),
    cuda_calls=("cudaLaunchKernel", "cudaStreamSynchronize", "cudaMemcpyAsync"),
    copies=("Memcpy HtoD (Pageable -> Device)", "Memcpy DtoH (Device -> Pageable)"),
    allocated_bytes=512,
)


def test_a_step_on_a_gpu() -> None:
    compiled = EvidenceResult(True, "", graph_breaks=0, frames_compiled=2, recompiles=1)
    assert step_counts(context(ON_A_GPU), compiled) == StepCounts(
        operators=3,
        kernels=2,
        flops=100,
        bytes_allocated=512,
        frames_compiled=2,
        recompiles=1,
        copies_to_device=1,
        synchronizations=1,
        work={"bf16": 0.88, "fp32": 0.12},
    )


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"lost": 1}, {"kernels", "copies_to_device"}),
        ({"names": frozenset({"cudaGraphLaunch"})}, {"operators", "flops", "work"}),  # the graph hides its operators
        ({"operators": (product("float", None),)}, {"flops", "work"}),
        (
            {"names": frozenset(), "kernels": (), "cuda_calls": (), "copies": ()},  # no CUPTI
            {"kernels", "copies_to_device", "synchronizations"},
        ),
    ],
)
def test_what_was_not_seen_is_missing_and_not_zero(changes: dict[str, Any], missing: set[str]) -> None:
    found = step_counts(context(dataclasses.replace(ON_A_GPU, **changes)))
    whole = step_counts(context(ON_A_GPU))
    known = {name for name in StepCounts.__struct_fields__ if getattr(whole, name) not in (None, {})}
    assert {name for name in known if getattr(found, name) in (None, {})} == missing


def test_a_cpu_has_no_kernels_and_a_step_without_a_trace_no_counts() -> None:
    found = step_counts(context(ON_A_GPU, "cpu"))
    assert (found.operators, found.kernels, found.synchronizations) == (3, None, None)
    assert step_counts(context(None)) == StepCounts()
