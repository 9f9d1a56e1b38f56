"""A step that begins on the host, or with reading its batch from a dataset."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpubench.cli.main import run
from gpubench.errors import GpubenchError
from gpubench.measure.trace import Kernel, Operator, Trace, trace_step
from gpubench.toggles.input.pipeline import PIPELINE
from gpubench.worker.prepare import apply_toggles, build, make_batches
from gpubench.worker.step import Stepper
from gpubench.workloads.batch import items_of
from gpubench.workloads.describe import describe
from gpubench.workloads.loader import Loaded
from gpubench.workloads.workload import Workload
from tests.running import BUSY, ROOT, gpubench_here


class Numbers:
    """Item i is four times the number i; what was read is kept."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.read.append(index)
        return torch.full((4, 8, 8), float(index)), index


def loaded(dataset: Any, **changes: Any) -> Loaded:
    fields: dict[str, Any] = {
        "name": "mine", "item": "row", "batch_size": 2, "build": lambda: nn.Conv2d(4, 4, 3),
        "infer": lambda model, batch, options: model(batch[0]), "dataset": dataset,
    }  # fmt: skip
    of = Workload(**(fields | changes))
    return Loaded(workload=of, reference="mine.py:make", size="default", parameters={}, source_hash=None)


def prepared(case: Loaded, **configuration: str | int) -> Stepper:
    context = build(case, "inference", torch.device("cpu"), dict(configuration), 0)
    apply_toggles(context, make_batches(case, 2, 2, 0))
    return Stepper(context)


def test_batches_go_round_the_dataset() -> None:
    assert [items_of(number, 3, 7) for number in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 0, 1]]


def test_a_loader_gives_the_batches_that_are_compared_in_turn_and_reads_them_anew() -> None:
    numbers = Numbers()
    stepper = prepared(loaded(lambda: numbers), pipeline="loader")
    resident = [batch[1].tolist() for batch in stepper.context.batches]
    assert resident == [[2, 3], [4, 5]]
    numbers.read.clear()
    fetched = [stepper.context.step.fetch(index) for index in (0, 1, 0, 1, 1, 0)]
    assert [batch[1].tolist() for batch in fetched] == [resident[index] for index in (0, 1, 0, 1, 1, 0)]
    assert numbers.read[:8] == [2, 3, 4, 5, 2, 3, 4, 5]
    stepper.context.batches.append("another")
    assert stepper.context.step.fetch(2) == "another"


def test_what_toggles_do_to_batches_is_done_to_each_that_is_read() -> None:
    stepper = prepared(loaded(Numbers), pipeline="loader", precision="bf16-weights", channels_last="on")
    parts = stepper.context.step
    batch = parts.transfer(parts.fetch(0))
    assert batch[0].dtype is torch.bfloat16
    assert batch[0].is_contiguous(memory_format=torch.channels_last)
    assert batch[1].dtype is torch.int64
    stepper.step()
    assert stepper.output.dtype is torch.bfloat16


@pytest.mark.parametrize("value", ["resident", "loader"])
def test_the_trace_shows_whether_a_loader_was_asked(value: str) -> None:
    stepper = prepared(loaded(Numbers), pipeline=value)
    stepper.context.trace = trace_step(lambda: stepper.run(0), cuda=False)
    for claimed in ("resident", "loader"):
        assert PIPELINE.evidence(stepper.context, claimed).took_effect is (claimed == value)


def test_on_a_gpu_a_host_batch_is_copied_in_the_step() -> None:
    stepper = prepared(loaded(Numbers))
    stepper.context.device = torch.device("cuda")
    for copies, took_effect in (((), False), (("Memcpy HtoD (Pageable -> Device)",), True)):
        stepper.context.trace = Trace(
            operators=(Operator(name="aten::mm", dtypes=(), shapes=(), strides=()),),
            kernels=(Kernel(name="gemm", seconds=1.0),), names=frozenset({"gemm"}), copies=copies,
        )  # fmt: skip
        assert PIPELINE.evidence(stepper.context, "host").took_effect is took_effect


def test_where_it_cannot_be() -> None:
    from gpubench.hardware.facts import Device
    from gpubench.toggles.toggle import Scope

    case = loaded(None, inputs=lambda count, generator: (torch.randn(count, 4, 8, 8, generator=generator),))
    facts = describe(case, "inference")
    scope = Scope(device=Device(kind="cpu", name="A CPU", cores=2), workload=facts, torch_version=(2, 13))
    assert PIPELINE.unmet(scope, "loader") == "needs a workload with a dataset"
    assert "on a CPU the batches are in the host's memory anyway" in (PIPELINE.unmet(scope, "host") or "")
    with_dataset = dataclasses.replace(scope, workload=describe(loaded(Numbers), "inference"))
    assert PIPELINE.unmet(with_dataset, "loader") is None


class Random(Numbers):
    """Another item whenever it is read."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.randn(4, 8, 8), index


def test_what_a_dataset_cannot_be_is_said_when_it_is_loaded() -> None:
    with pytest.raises(GpubenchError, match="Input 0 of workload 'mine' differs when the same items are read again"):
        describe(loaded(Random), "inference")
    with pytest.raises(GpubenchError, match="which is empty or has no length and items"):
        describe(loaded(list), "inference")
    with pytest.raises(GpubenchError, match="has neither inputs nor a dataset"):
        loaded(None)
    with pytest.raises(GpubenchError, match="has both inputs and a dataset"):
        loaded(Numbers, inputs=lambda count, generator: ())


def test_the_example_reads_its_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = f"{ROOT / 'examples' / 'from_dataset.py'}:classifier"
    done = gpubench_here(
        "compare-opts", reference, "--pipeline", "loader", "--set", "precision=bf16-weights", "--strategy", "each",
        "--final-rounds", "0", *BUSY, "--format", "json", "--output", "report.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["measurements"]
    assert [(row["status"], row["configuration"]["pipeline"]) for row in rows] == [("ok", "loader")] * 2
    assert all(row["quality"]["passed"] for row in rows)
    arguments = ["compare-opts", reference, "--pipeline", "host", "--fix", "pipeline=loader"]
    assert run(arguments) == 2
    assert "--pipeline and --fix pipeline disagree" in capsys.readouterr().err
