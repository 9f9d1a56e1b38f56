"""Which configurations are made of which toggles and values, and which are skipped with which sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from gpubench.errors import GpubenchError
from gpubench.hardware.facts import Device
from gpubench.search.presets import load_preset, preset_names
from gpubench.search.space import Builder, ToggleValues, configuration_id
from gpubench.search.strategies import get_strategy, search_space
from gpubench.search.strategies.ladder import cumulative
from gpubench.search.strategies.sweep import SWEEP
from gpubench.search.strategy import SearchSpace
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


def searched(made: Builder, toggles: list[ToggleValues], strategy: str) -> SearchSpace:
    return search_space(made, toggles, get_strategy(strategy))


def swept(toggle: str, values: list[int], *also: ToggleValues) -> SearchSpace:
    return search_space(builder(), [ToggleValues(toggle, tuple(values)), *also], SWEEP)


TOGGLES = [
    ToggleValues("precision", ("bf16-autocast", "tf32")),
    ToggleValues("channels_last", ("on",)),
    ToggleValues("compile", ("default",)),
]


def test_each_value_alone() -> None:
    space = searched(builder(), TOGGLES, "each")
    assert space.baseline.id == "baseline"
    assert [row.id for row in space.planned if not row.skip] == [
        "precision=bf16-autocast", "channels_last=on", "compile=default",
    ]  # fmt: skip


def test_what_the_device_cannot_do_is_skipped_with_a_sentence() -> None:
    space = searched(builder(), TOGGLES, "each")
    skipped = next(row for row in space.planned if row.skip)
    assert skipped.id == "precision=tf32"
    assert "needs a CUDA device" in skipped.skip
    assert not any(row.skip for row in searched(builder(GPU), TOGGLES, "each").planned)


def test_a_grid_is_every_combination_once() -> None:
    space = searched(builder(), TOGGLES, "grid")
    assert len({row.id for row in space.planned}) == len(space.planned) == 3 * 2 * 2 - 1


def test_the_ladder_adds_one_toggle_at_a_time() -> None:
    chosen = {"precision": "bf16-autocast", "channels_last": "on", "compile": "default"}
    ladder = cumulative(builder(), TOGGLES, chosen)
    assert [row.id for row in ladder] == [
        "precision=bf16-autocast",
        "precision=bf16-autocast,channels_last=on",
        "precision=bf16-autocast,channels_last=on,compile=default",
    ]
    assert [role.kind for role in ladder[-1].roles] == ["ladder", "all"]
    assert [row.roles[0].step for row in ladder] == [1, 2, 3]


def test_fixed_toggles_are_in_every_row_and_in_the_names() -> None:
    space = searched(builder(channels_last="on", batch_size=8), TOGGLES[:1], "each")
    assert space.baseline.id == "batch_size=8,channels_last=on"
    assert all(row.configuration["channels_last"] == "on" for row in space.planned)
    assert all(row.configuration["batch_size"] == 8 for row in space.planned)


def test_a_baseline_that_cannot_run_is_an_error() -> None:
    with pytest.raises(GpubenchError, match=r"baseline cannot run.*tf32"):
        searched(builder(precision="tf32"), TOGGLES, "each")


def test_a_toggle_that_does_not_apply_is_left_out_or_refused() -> None:
    space = searched(builder(), [*TOGGLES, ToggleValues("optimizer", ("fused",))], "each")
    assert "optimizer" in space.builder.left_out
    assert not any("optimizer" in row.configuration for row in space.planned)
    for strategy in ("each", "grid", "ladder"):
        entries = [*TOGGLES, ToggleValues("optimizer", ("fused",))]
        asked = search_space(builder(), entries, get_strategy(strategy), {"optimizer"})
        refused = {row.id: row.skip for row in asked.planned if "optimizer" in row.configuration}
        assert refused == {"optimizer=fused": "optimizer does not apply here: inference has no optimizer"}
    with pytest.raises(GpubenchError, match="'optimizer' does not apply here"):
        builder(optimizer="fused")


def test_an_unknown_strategy_suggests_the_nearest() -> None:
    with pytest.raises(GpubenchError, match="Did you mean 'ladder'"):
        searched(builder(), TOGGLES, "lader")


def test_a_sweep_starts_from_its_first_runnable_value() -> None:
    space = swept("batch_size", [1, 2, 4])
    assert space.baseline.id == "batch_size=1"
    assert [row.id for row in space.planned] == ["batch_size=2", "batch_size=4"]


def test_the_whole_image_is_one_row_whatever_the_overlaps() -> None:
    space = swept("tile_size", [0, 64, 100], ToggleValues("tile_overlap", (8, 32)))
    rows = [space.baseline, *space.planned]
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
    space = searched(builder(), [*TOGGLES, ToggleValues(half_only, ("on",))], "each")
    row = next(row for row in space.planned if row.roles[0].toggle == half_only)
    assert (row.id, row.skip) == ("precision=bf16-autocast,half_only=on", "")
    # It is in the ladder, whether or not what it needs is chosen.
    with_it = cumulative(
        builder(), [ToggleValues(half_only, ("on",)), *TOGGLES], {half_only: "on", "compile": "default"}
    )
    assert [step.id for step in with_it] == [row.id, "precision=bf16-autocast,compile=default,half_only=on"]
    chosen = {"precision": "bf16-weights", half_only: "on"}
    ladder = cumulative(builder(), [*TOGGLES, ToggleValues(half_only, ("on",))], chosen)
    assert [step.id for step in ladder] == ["precision=bf16-weights", "precision=bf16-weights,half_only=on"]
    assert not any(step.skip for step in (*with_it, *ladder))


def test_a_step_that_cannot_be_is_left_out_of_the_later_ones(half_only: str, monkeypatch: pytest.MonkeyPatch) -> None:
    toggle = dataclasses.replace(get(half_only), prerequisites={"on": {"precision": ("bf16-weights",)}})
    monkeypatch.setitem(all_toggles(), half_only, toggle)
    toggles = [ToggleValues("precision", ("bf16-autocast",)), ToggleValues(half_only, ("on",)), TOGGLES[1]]
    steps = cumulative(builder(), toggles, {"precision": "bf16-autocast", half_only: "on", "channels_last": "on"})
    assert [(step.id, bool(step.skip)) for step in steps] == [
        ("precision=bf16-autocast", False),
        ("precision=bf16-autocast,half_only=on", True),
        ("precision=bf16-autocast,channels_last=on", False),
    ]
    assert [role.kind for role in steps[-1].roles] == ["ladder", "all"]


def test_what_is_asked_for_is_not_changed_for_a_value_that_needs_another(half_only: str) -> None:
    wanted = [ToggleValues("precision", ("bf16-autocast",)), ToggleValues(half_only, ("on",))]
    skipped = [row for row in searched(builder(), wanted, "grid").planned if row.skip]
    assert [(row.id, row.skip) for row in skipped] == [
        ("half_only=on", "half_only=on needs precision=bf16-autocast or bf16-weights")
    ]
    fixed = searched(builder(precision="fp32"), wanted[1:], "each").planned
    assert [row.skip for row in fixed] == ["half_only=on needs precision=bf16-autocast or bf16-weights"]


def test_names_say_what_was_changed() -> None:
    assert configuration_id({"a": 1, "b": "x"}, {"a": 1, "b": "x"}) == "baseline"
    assert configuration_id({"a": 2, "b": "y"}, {"a": 1, "b": "x"}) == "a=2,b=y"


@pytest.mark.parametrize("name", preset_names())
def test_bundled_presets_load(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name
    assert preset.toggle_values("training", "cpu")
    assert not any(one.toggle == "allocator" for one in preset.toggle_values("training", "cuda"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = ", "damaged"),
        ("name = 'x'", "damaged.*summary"),
        ("name='x'\nsummary='y'\n[[technique]]\ntoggle='precison'\nvalues=['fp32']", "Did you mean 'precision'"),
        ("name='x'\nsummary='y'\n[[technique]]\ntoggle='precision'\nvalues=['fp23']", "fp23"),
        ("name='x'\nsummary='y'\nstrategy='laddr'\ntechnique=[]", "Unknown strategy 'laddr'.*Did you mean 'ladder'"),
        ("name='x'\nsummary='y'\ntechniques=[]\ntechnique=[]", "damaged.*techniques"),
    ],
)
def test_a_damaged_preset_is_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text(text)
    with pytest.raises(GpubenchError, match=words):
        load_preset(str(path))
