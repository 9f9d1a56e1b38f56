"""Batches that are read in processes of a DataLoader, and how far ahead."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpubench.hardware.facts import Device
from gpubench.search.space import Builder
from gpubench.toggles import bundled_toggles, usage
from gpubench.toggles.input.loader_workers import LOADER_WORKERS
from gpubench.toggles.input.pipeline import DRAWS, PIPELINE
from gpubench.toggles.input.prefetch_factor import PREFETCH_FACTOR
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import Scope, in_force
from gpubench.worker import prepare
from gpubench.worker.seeding import seed_step
from gpubench.worker.step import Stepper
from gpubench.workloads.describe import describe
from gpubench.workloads.loader import Loaded
from gpubench.workloads.workload import Workload
from tests.running import BUSY, gpubench_here


class Numbers:
    """Item i is four times the number i, and the process that read it."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((4,), float(index)), os.getpid()


def loaded(**changes: Any) -> Loaded:
    fields: dict[str, Any] = {
        "name": "mine", "item": "row", "batch_size": 2, "build": lambda: nn.Linear(4, 4),
        "infer": lambda model, batch, options: model(batch[0]), "dataset": Numbers,
    }  # fmt: skip
    of = Workload(**(fields | changes))
    return Loaded(workload=of, reference="mine.py:make", size="default", parameters={}, source_hash=None)


STARTED: list[Stepper] = []


@pytest.fixture(autouse=True)
def no_worker_stays() -> Iterator[None]:
    """Ends the workers of each test at once: garbage collection would take 5 s for each."""
    yield
    for stepper in STARTED:
        draws = stepper.context.notes.get(DRAWS)
        if draws is not None and hasattr(draws.loader, "_shutdown_workers"):
            draws.loader._shutdown_workers()
    STARTED.clear()


def prepared(*idle: str, **configuration: str | int) -> Stepper:
    """A step with `configuration`; the toggles called `idle` do nothing."""
    case = loaded()
    configuration = {"pipeline": "loader", "loader_workers": 0, "prefetch_factor": 2, **configuration}
    context = prepare.build(case, "inference", torch.device("cpu"), dict(configuration), 0)
    known = bundled_toggles() | {name: dataclasses.replace(bundled_toggles()[name], apply=in_force) for name in idle}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "beside", lambda _: known)
        prepare.apply_toggles(context, prepare.make_batches(case, 2, 3, 0))
    STARTED.append(Stepper(context))
    return STARTED[-1]


def scope(**changes: Any) -> Scope:
    facts = describe(loaded(**changes), "inference")
    return Scope(device=Device(kind="cpu", name="A CPU", cores=2), workload=facts, torch_version=(2, 13))


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_the_batches_come_in_turn_from_so_many_processes(workers: int) -> None:
    stepper = prepared(loader_workers=workers)
    resident = [batch[0].tolist() for batch in stepper.context.batches]
    order = [0, 1, 2, 0, 1, 2, 2, 0]
    fetched = [stepper.context.step.fetch(index) for index in order]
    assert [batch[0].tolist() for batch in fetched] == [resident[index] for index in order]
    readers = {int(batch[1][0]) for batch in fetched}
    assert len(readers) == max(workers, 1)
    assert (os.getpid() in readers) == (workers == 0)
    for claimed in LOADER_WORKERS.values:
        proof = LOADER_WORKERS.evidence(stepper.context, claimed)
        assert proof.took_effect is (claimed == workers), proof


def test_workers_that_do_nothing_are_caught() -> None:
    stepper = prepared("loader_workers", loader_workers=2)
    stepper.step()
    proof = LOADER_WORKERS.evidence(stepper.context, 2)
    assert proof.took_effect is False
    assert proof.detail == "1 batch came from 1 process, the one that computes"
    resident = prepared("pipeline", loader_workers=2)
    resident.step()
    assert LOADER_WORKERS.evidence(resident.context, 2).took_effect is False
    assert LOADER_WORKERS.evidence(resident.context, 0).took_effect is True


def test_another_process_is_no_worker() -> None:
    stepper = prepared(loader_workers=1)
    stepper.step()
    stepper.context.notes[DRAWS].readers[os.getppid()] += 1
    assert LOADER_WORKERS.evidence(stepper.context, 2).took_effect is False


@pytest.mark.parametrize("factor", [2, 4])
def test_so_many_batches_are_ahead(factor: int) -> None:
    stepper = prepared(loader_workers=2, prefetch_factor=factor)
    for _ in range(5):
        stepper.step()
    for claimed in PREFETCH_FACTOR.values:
        proof = PREFETCH_FACTOR.evidence(stepper.context, claimed)
        assert proof.took_effect is (claimed == factor), proof
    assert (
        f"{2 * factor} batches ahead of the steps with 2 workers"
        in PREFETCH_FACTOR.evidence(stepper.context, factor).detail
    )


def test_a_factor_that_is_not_applied_is_caught() -> None:
    stepper = prepared("prefetch_factor", loader_workers=1, prefetch_factor=8)
    stepper.step()
    assert PREFETCH_FACTOR.evidence(stepper.context, 8).took_effect is False
    alone = prepared()
    alone.step()
    assert PREFETCH_FACTOR.evidence(alone.context, 2).took_effect is True
    assert PREFETCH_FACTOR.evidence(alone.context, 4).took_effect is False


def test_a_loader_draws_none_of_the_steps_random_numbers() -> None:
    drawn = []
    for workers in (0, 1):
        stepper = prepared(loader_workers=workers)
        seed_step(0, 0)
        stepper.step()
        drawn.append(float(torch.rand(())))
    seed_step(0, 0)
    assert drawn == [float(torch.rand(()))] * 2


def test_what_they_need_beside_them() -> None:
    builder = Builder(scope())
    plan = builder.plan({"prefetch_factor": 4}, "single")
    assert not plan.skip
    assert {name: plan.configuration[name] for name in ("pipeline", "loader_workers", "prefetch_factor")} == {
        "pipeline": "loader", "loader_workers": 2, "prefetch_factor": 4,
    }  # fmt: skip
    held = Builder(scope(), fix={"pipeline": "resident"}).plan({"loader_workers": 2}, "single")
    assert held.skip == "loader_workers=2 needs pipeline=loader"
    inputs = Builder(scope(dataset=None, inputs=lambda count, draw: (torch.randn(count, 4, generator=draw),)))
    for name in ("loader_workers", "prefetch_factor"):
        assert inputs.left_out[name] == "needs a workload with a dataset"


def test_the_printed_lines_make_that_loader() -> None:
    configuration: dict[str, Any] = {"pipeline": "loader", "loader_workers": 2, "prefetch_factor": 4, "batch_size": 3}
    lines = usage(configuration)
    made = next(line for line in lines.splitlines() if "DataLoader(dataset" in line).split(": ", 1)[1]
    lines = "\n".join([line for line in lines.splitlines() if "DataLoader(dataset" not in line] + [made])
    loader = run_lines(lines, dataset=Numbers())["loader"]
    assert (loader.batch_size, loader.num_workers, loader.persistent_workers, loader.prefetch_factor) == (3, 2, True, 4)
    stepper = prepared(loader_workers=2, prefetch_factor=4)
    assert stepper.context.loading == {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 4}


WORKLOAD = """
import os
from pathlib import Path

import torch
from torch import nn

from gpubench import Workload

SEEN = Path(__file__).with_name("readers")


class Rows:
    def __len__(self):
        return 64

    def __getitem__(self, index):
        with SEEN.open("a") as file:
            file.write(f"{os.getpid()}\\n")
        return (torch.full((16,), index / 64),)


def make():
    return Workload(name="rows", item="row", batch_size=4, build=lambda: nn.Linear(16, 16), dataset=Rows)
"""


def test_workers_are_measured_and_end_with_their_process(tmp_path: Path) -> None:
    (tmp_path / "rows.py").write_text(WORKLOAD)
    done = gpubench_here(
        "compare-opts", f"{tmp_path / 'rows.py'}:make", "--fix", "pipeline=loader", "--set", "loader_workers=2",
        "--strategy", "each", "--final-rounds", "0", *BUSY, "--format", "json", "--output", "report.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr  # on few cores workers make a small step slower
    rows = json.loads(done.stdout)["measurements"]
    assert [(row["status"], row["configuration"]["loader_workers"]) for row in rows] == [("ok", 0), ("ok", 2)]
    assert all(row["quality"]["passed"] for row in rows)
    proof = next(each for each in rows[1]["evidence"] if each["toggle"] == "loader_workers")
    assert proof["took_effect"] is True
    assert "came from 2 processes, all workers of this one in its process group" in proof["detail"]
    readers = set((tmp_path / "readers").read_text().split())
    assert len(readers) >= 3  # that of the baseline and two workers at least
    assert not [reader for reader in readers if reader != str(os.getpid()) and lives(reader)]


def lives(process: str) -> bool:
    try:
        return Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_pipeline_is_proven_with_workers_too() -> None:
    from gpubench.measure.trace import trace_step

    stepper = prepared(loader_workers=1)
    stepper.step()
    stepper.context.trace = trace_step(lambda: stepper.run(1), cuda=False)
    assert PIPELINE.evidence(stepper.context, "loader").took_effect is True
    assert PIPELINE.evidence(stepper.context, "resident").took_effect is False
