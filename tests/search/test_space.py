"""Which configurations are made of which techniques, and which are skipped with which sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from gpubench.errors import GpubenchError
from gpubench.hardware.facts import Device
from gpubench.search.presets import load_matrix, matrix_names
from gpubench.search.space import Builder, ToggleValues, build_matrix, configuration_id, rungs, sweep
from gpubench.toggles import all_toggles, get
from gpubench.toggles.toggle import Scope
from gpubench.workloads.workload_facts import WorkloadFacts

CPU = Device(kind="cpu", name="A CPU", cores=4, physical_cores=4, fast_dtypes=["float32", "bfloat16"])
GPU = Device(
    kind="cuda",
    name="A GPU",
    index=0,
    compute_capability=[8, 0],
    fast_dtypes=["float32", "tf32", "bfloat16", "float16"],
)
WORKLOAD = WorkloadFacts(
    reference="m.py:m", name="m", item="image", mode="inference", modes=["inference", "training"], size="tiny",
    parameters={}, batch_size=4, parameter_count=10, input_shapes=[[4, 3, 8, 8]], convolution_dimensions=[2],
    tile_sizes=[64, 128], tile_multiple=8, tile_overlap=16, resolution=256,
)  # fmt: skip


def builder(device: Device = CPU, mode: str = "inference", **fix: str | int) -> Builder:
    workload = msgspec.structs.replace(WORKLOAD, mode=mode)
    return Builder(Scope(device=device, workload=workload, torch_version=(2, 13)), fix)


TECHNIQUES = [
    ToggleValues("precision", ("bf16-autocast", "tf32")),
    ToggleValues("channels_last", ("on",)),
    ToggleValues("compile", ("default",)),
]


def test_each_technique_alone() -> None:
    matrix = build_matrix(builder(), TECHNIQUES, "each")
    assert matrix.baseline.id == "baseline"
    assert [row.id for row in matrix.planned if not row.skip] == [
        "precision=bf16-autocast", "channels_last=on", "compile=default",
    ]  # fmt: skip


def test_what_the_device_cannot_do_is_skipped_with_a_sentence() -> None:
    matrix = build_matrix(builder(), TECHNIQUES, "each")
    skipped = next(row for row in matrix.planned if row.skip)
    assert skipped.id == "precision=tf32"
    assert "needs a CUDA device" in skipped.skip
    assert not any(row.skip for row in build_matrix(builder(GPU), TECHNIQUES, "each").planned)


def test_a_grid_is_every_combination_once() -> None:
    matrix = build_matrix(builder(), TECHNIQUES, "grid")
    assert len({row.id for row in matrix.planned}) == len(matrix.planned) == 3 * 2 * 2 - 1


def test_the_ladder_adds_one_technique_at_a_time() -> None:
    chosen = {"precision": "bf16-autocast", "channels_last": "on", "compile": "default"}
    ladder = rungs(builder(), TECHNIQUES, chosen)
    assert [row.id for row in ladder] == [
        "precision=bf16-autocast",
        "precision=bf16-autocast,channels_last=on",
        "precision=bf16-autocast,channels_last=on,compile=default",
    ]
    assert [role.kind for role in ladder[-1].roles] == ["ladder", "all"]
    assert [row.roles[0].step for row in ladder] == [1, 2, 3]


def test_fixed_toggles_are_in_every_row_and_in_the_names() -> None:
    matrix = build_matrix(builder(channels_last="on", batch_size=8), TECHNIQUES[:1], "each")
    assert matrix.baseline.id == "batch_size=8,channels_last=on"
    assert all(row.configuration["channels_last"] == "on" for row in matrix.planned)
    assert all(row.configuration["batch_size"] == 8 for row in matrix.planned)


def test_a_baseline_that_cannot_run_is_an_error() -> None:
    with pytest.raises(GpubenchError, match=r"baseline cannot run.*tf32"):
        build_matrix(builder(precision="tf32"), TECHNIQUES, "each")


def test_a_toggle_that_does_not_apply_is_left_out_or_refused() -> None:
    matrix = build_matrix(builder(), [*TECHNIQUES, ToggleValues("optimizer", ("fused",))], "each")
    assert "optimizer" in matrix.left_out
    assert not any("optimizer" in row.configuration for row in matrix.planned)
    with pytest.raises(GpubenchError, match="'optimizer' does not apply here"):
        builder(optimizer="fused")


def test_an_unknown_strategy_suggests_the_nearest() -> None:
    with pytest.raises(GpubenchError, match="Did you mean 'ladder'"):
        build_matrix(builder(), TECHNIQUES, "lader")


def test_a_sweep_starts_from_its_first_runnable_value() -> None:
    matrix = sweep(builder(), "batch_size", [1, 2, 4])
    assert matrix.baseline.id == "batch_size=1"
    assert [row.id for row in matrix.planned] == ["batch_size=2", "batch_size=4"]


def test_the_whole_image_is_one_row_whatever_the_overlaps() -> None:
    matrix = sweep(builder(), "tile_size", [0, 64, 100], [ToggleValues("tile_overlap", (8, 32))])
    rows = [matrix.baseline, *matrix.planned]
    assert [row.id for row in rows if not row.skip] == [
        "tile_size=0", "tile_overlap=8,tile_size=64", "tile_overlap=32,tile_size=64",
    ]  # fmt: skip
    assert all("multiple of 8" in row.skip for row in rows if row.configuration["tile_size"] == 100)


@pytest.fixture
def half_only(monkeypatch: pytest.MonkeyPatch) -> str:
    """A toggle whose only value needs bfloat16 beside it."""
    toggle = dataclasses.replace(
        get("channels_last"), name="half_only", prerequisites={"on": {"precision": ("bf16-autocast", "bf16-weights")}}
    )
    monkeypatch.setitem(all_toggles(), toggle.name, toggle)
    return toggle.name


def test_a_value_that_needs_another_is_tried_alone_with_it(half_only: str) -> None:
    matrix = build_matrix(builder(), [*TECHNIQUES, ToggleValues(half_only, ("on",))], "each")
    row = next(row for row in matrix.planned if row.roles[0].toggle == half_only)
    assert (row.id, row.skip) == ("precision=bf16-autocast,half_only=on", "")
    # It is in the ladder, whether or not what it needs is chosen.
    with_it = rungs(builder(), [ToggleValues(half_only, ("on",)), *TECHNIQUES], {half_only: "on", "compile": "default"})
    assert [rung.id for rung in with_it] == [row.id, "precision=bf16-autocast,compile=default,half_only=on"]
    chosen = {"precision": "bf16-weights", half_only: "on"}
    ladder = rungs(builder(), [*TECHNIQUES, ToggleValues(half_only, ("on",))], chosen)
    assert [rung.id for rung in ladder] == ["precision=bf16-weights", "precision=bf16-weights,half_only=on"]
    assert not any(rung.skip for rung in (*with_it, *ladder))


def test_what_is_asked_for_is_not_changed_for_a_value_that_needs_another(half_only: str) -> None:
    wanted = [ToggleValues("precision", ("bf16-autocast",)), ToggleValues(half_only, ("on",))]
    skipped = [row for row in build_matrix(builder(), wanted, "grid").planned if row.skip]
    assert [(row.id, row.skip) for row in skipped] == [
        ("half_only=on", "half_only=on needs precision=bf16-autocast or bf16-weights")
    ]
    fixed = build_matrix(builder(precision="fp32"), wanted[1:], "each").planned
    assert [row.skip for row in fixed] == ["half_only=on needs precision=bf16-autocast or bf16-weights"]


def test_names_say_what_was_changed() -> None:
    assert configuration_id({"a": 1, "b": "x"}, {"a": 1, "b": "x"}) == "baseline"
    assert configuration_id({"a": 2, "b": "y"}, {"a": 1, "b": "x"}) == "a=2,b=y"


@pytest.mark.parametrize("name", matrix_names())
def test_bundled_matrices_load(name: str) -> None:
    profile = load_matrix(name)
    assert profile.name == name
    assert profile.techniques("training", "cpu")
    assert not any(one.toggle == "allocator" for one in profile.techniques("training", "cuda"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = ", "damaged"),
        ("name = 'x'", "damaged.*summary"),
        ("name='x'\nsummary='y'\n[[technique]]\ntoggle='precison'\nvalues=['fp32']", "Did you mean 'precision'"),
        ("name='x'\nsummary='y'\n[[technique]]\ntoggle='precision'\nvalues=['fp23']", "fp23"),
        ("name='x'\nsummary='y'\ntechniques=[]\ntechnique=[]", "damaged.*techniques"),
    ],
)
def test_a_damaged_matrix_file_is_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(text)
    with pytest.raises(GpubenchError, match=words):
        load_matrix(str(path))
