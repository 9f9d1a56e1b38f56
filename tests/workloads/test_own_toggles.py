"""Toggles that a workload brings with it are measured, proven and printed like all others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from gpubench.cli.main import run
from gpubench.errors import GpubenchError
from gpubench.hardware.facts import Device
from gpubench.search.space import Builder
from gpubench.study.request import StudyRequest
from gpubench.toggles import all_toggles, get, usage, with_own
from gpubench.toggles.own import check, declared, stand_in
from gpubench.toggles.toggle import Conflict, EvidenceResult, Requirement, Scope, Stage, Toggle
from gpubench.worker.prepare import apply_toggles, build, make_batches, toggles_of
from gpubench.worker.step import Stepper
from gpubench.workloads.describe import describe
from gpubench.workloads.loader import Loaded
from gpubench.workloads.workload import Workload
from tests.running import BUSY, ROOT, gpubench_here

EXAMPLE = f"{ROOT / 'examples' / 'own_toggle.py'}:pooled"
WAY = Toggle(
    name="way",
    summary="How it is done.",
    values={"plain": "as is", "fast": "faster", "gpu": "on a GPU"},
    stage=Stage.MODEL,
    requires={"gpu": Requirement(device_kinds=("cuda",))},
    conflicts=(Conflict(value="fast", other="precision", other_values=("bf16-weights",), reason="it needs fp32"),),
    prerequisites={"gpu": {"compile": ("default",)}},
    idle_when={"compile": ("default",)},
    tolerance={"fast": 0.5, "gpu": lambda facts: 0.25},
    magnitude=lambda value: float(len(str(value))),
    usage=lambda value, scope: f'model.way = "{value}"',
    evidence=lambda context, value: EvidenceResult(context.model.way == value, context.model.way),
    changes_problem=True,
    source="here",
)


class Model(nn.Module):
    def __init__(self, options: dict[str, str]) -> None:
        super().__init__()
        self.way, self.layer = options["way"], nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


def workload(*toggles: Any, **changes: Any) -> Workload:
    fields: dict[str, Any] = {
        "name": "mine", "item": "row", "batch_size": 2, "build": Model, "toggles": toggles or (WAY,),
        "inputs": lambda count, generator: (torch.randn(count, 4, generator=generator),),
    }  # fmt: skip
    return Workload(**(fields | changes))


def loaded(of: Workload) -> Loaded:
    return Loaded(workload=of, reference="mine.py:make", size="default", parameters={}, source_hash=None)


@pytest.fixture
def scope() -> Scope:
    facts = describe(loaded(workload()), "inference")
    return Scope(device=Device(kind="cpu", name="A CPU", cores=2), workload=facts, torch_version=(2, 13))


def test_what_stands_for_a_toggle_says_the_same(scope: Scope) -> None:
    there = stand_in(msgspec.json.decode(msgspec.json.encode(declared(WAY, scope)), type=type(declared(WAY, scope))))
    for name in (
        "name", "summary", "values", "stage", "conflicts", "prerequisites", "idle_when", "changes_problem", "source",
        "compiles", "is_plain", "after",
    ):  # fmt: skip
        assert getattr(there, name) == getattr(WAY, name), name
    assert there.baseline(scope) == "plain"
    for value in WAY.values:
        assert there.unmet(scope, value) == WAY.unmet(scope, value)
        assert there.allowed_error(value, scope.workload) == WAY.allowed_error(value, scope.workload)
        assert there.usage(value, scope) == WAY.usage(value, scope)
        assert there.magnitude(value) == WAY.magnitude(value)
    assert there.unmet(scope, "fast", {"precision": "bf16-weights"}) == WAY.unmet(
        scope, "fast", {"precision": "bf16-weights"}
    )
    with pytest.raises(RuntimeError, match="by name alone"):
        there.evidence(None, "plain")  # type: ignore[arg-type]


def test_a_toggle_that_does_not_apply_is_left_out(scope: Scope) -> None:
    idle = dataclasses.replace(WAY, applies=lambda _: "is for winter only")
    with with_own([stand_in(declared(idle, scope))]):
        builder = Builder(scope)
        assert builder.left_out["way"] == "is for winter only"
        with pytest.raises(GpubenchError, match="does not apply here: is for winter only"):
            builder.require("way")


def test_own_toggles_are_known_inside_the_block_only(scope: Scope) -> None:
    names = list(all_toggles())
    with with_own([stand_in(declared(WAY, scope))]):
        assert get("way").name == "way"
        assert set(all_toggles()) == {*names, "way"}
        builder = Builder(scope)
        assert builder.defaults["way"] == "plain"
        assert builder.impossible({**builder.defaults, "way": "gpu"}).startswith("way=gpu needs a CUDA device")
        assert usage({"way": "fast"}, scope) == 'model.way = "fast"'
    assert list(all_toggles()) == names
    with pytest.raises(GpubenchError, match="Unknown toggle 'way'"):
        get("way")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "compile"}, "another toggle has that name"),
        ({"name": "a way"}, "its name is no identifier"),
        ({"environment": lambda value: {}}, "environment variables are set before"),
        ({"values": {}}, "its numbers must be listed"),
        ({"sets_batch_size": True}, "batch_size is there already"),
    ],
)
def test_what_a_workload_cannot_bring_is_said(change: dict[str, Any], words: str) -> None:
    with pytest.raises(GpubenchError, match=words):
        check([dataclasses.replace(WAY, **change)], all_toggles(), "mine")
    with pytest.raises(GpubenchError, match="another toggle has that name"):
        check([WAY, WAY], all_toggles(), "mine")
    with pytest.raises(GpubenchError, match="is of type str"):
        check(["way"], all_toggles(), "mine")


def test_the_value_reaches_build_infer_and_loss() -> None:
    seen: list[Any] = []

    def infer(model: nn.Module, batch: Any, options: Any) -> Any:
        seen.append(options["way"])
        return model(*batch)

    def loss(model: nn.Module, batch: Any, options: Any) -> torch.Tensor:
        seen.append(options["way"])
        out: torch.Tensor = model(*batch).sum()
        return out

    case = loaded(workload(infer=infer, loss=loss))
    for mode in ("inference", "training"):
        configuration: dict[str, str | int] = {"way": "fast", **({"optimizer": "sgd"} if mode == "" else {})}
        context = build(case, mode, torch.device("cpu"), configuration, 0)  # type: ignore[arg-type]
        assert context.model.way == "fast"
        apply_toggles(context, make_batches(case, 2, 1, 0))
        assert [toggle.name for toggle, _ in toggles_of(context)] == ["way"]
        if mode == "inference":
            Stepper(context).step()
        else:
            context.step.forward(context.batches[0])
    assert seen == ["fast", "fast"]


def test_a_workload_without_options_is_called_as_before() -> None:
    case = loaded(workload(build=lambda: nn.Linear(4, 4), toggles=(), loss=lambda model, batch: model(*batch).sum()))
    context = build(case, "training", torch.device("cpu"), {}, 0)
    apply_toggles(context, make_batches(case, 2, 1, 0))
    assert context.step.forward(context.batches[0]).numel() == 1


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of the example, with a copy of it whose toggle does nothing."""
    folder = tmp_path_factory.mktemp("own")
    lazy = (ROOT / "examples" / "own_toggle.py").read_text().replace('options["pooling"]', '"mean"')
    (folder / "lazy.py").write_text(lazy)
    found = {}
    for name, reference in (("example", EXAMPLE), ("lazy", "lazy.py:pooled")):
        done = gpubench_here(
            "compare-opts", reference, "--set", "pooling=mean,matmul", "--final-rounds", "0",
            "--strategy", "each", *BUSY, "--format", "json", "--output", f"{name}.json", cwd=folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)
    return found


def test_an_own_toggle_is_measured_and_proven(report: Any) -> None:
    rows = {row["id"]: row for row in report["example"]["measurements"]}
    assert list(rows) == ["baseline", "pooling=matmul"]
    row = rows["pooling=matmul"]
    assert (row["status"], row["quality"]["passed"]) == ("ok", True)
    assert [(one["toggle"], one["detail"]) for one in row["evidence"] if one["toggle"] == "pooling"] == [
        ("pooling", "it is matmul")
    ]
    (own,) = report["example"]["workload"]["toggles"]
    assert (own["name"], [each["value"] for each in own["values"]]) == ("pooling", ["mean", "matmul"])


def test_an_own_toggle_that_does_nothing_is_caught(report: Any) -> None:
    row = next(row for row in report["lazy"]["measurements"] if row["id"] == "pooling=matmul")
    assert (row["status"], row["reason"]) == ("not_effective", "pooling=matmul took no effect: it is mean.")


def test_the_lines_of_an_own_toggle_are_printed(
    report: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = report["example"]
    document["recommendation"] |= {"id": "pooling=matmul"}
    document["recommendation"]["configuration"]["pooling"] = "matmul"
    (tmp_path / "report.json").write_text(json.dumps(document))
    assert run(["report", str(tmp_path / "report.json")]) == 0
    assert 'model = Pooled({"pooling": "matmul"})' in capsys.readouterr().out


def test_an_unknown_toggle_is_told_as_early_as_it_can_be(tmp_path: Path) -> None:
    with pytest.raises(GpubenchError, match="Unknown toggle 'pooling'"):
        StudyRequest(workload="resnet50", set={"pooling": "mean"}).check()
    StudyRequest(workload=EXAMPLE, set={"pooling": "mean"}).check()
    done = gpubench_here("compare-opts", EXAMPLE, "--set", "poling=matmul", "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert "poling" in done.stderr and "pooling" in done.stderr
    preset = tmp_path / "mine.toml"
    preset.write_text('name = "mine"\nsummary = "s"\n[[technique]]\ntoggle = "pooling"\nvalues = ["matmul"]\n')
    done = gpubench_here("compare-opts", EXAMPLE, "--preset", str(preset), "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pooling=matmul" in done.stdout


def test_the_toggles_command_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["toggles", "pooling", "--workload", EXAMPLE]) == 0
    assert "a product with a vector of 1 / N" in capsys.readouterr().out
    assert run(["toggles", "pooling"]) == 2
