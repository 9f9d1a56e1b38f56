"""What a toggle's traits say of configurations; planted toggles stand for those of other distributions."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

import gpubench.toggles
from gpubench.errors import GpubenchError
from gpubench.toggles import all_toggles, get, installed_toggles
from gpubench.toggles.toggle import Requirement, Toggle
from gpubench.toggles.traits import (
    batch_size,
    compiles,
    magnitude,
    noise_group,
    replays_graphs,
    steady_values,
    with_prerequisites,
    without_idle,
)


@pytest.fixture(autouse=True)
def fresh_registry():
    installed_toggles.cache_clear()
    yield
    installed_toggles.cache_clear()


@pytest.fixture
def plant(monkeypatch):
    """Adds toggles to the registry as entry points do."""

    def add(*toggles: Toggle) -> None:
        named = {toggle.name: toggle for toggle in toggles}
        points = [EntryPoint(name, "planted", "gpubench.toggles") for name in named]
        monkeypatch.setattr(gpubench.toggles, "entry_points", lambda group: points)
        monkeypatch.setattr(gpubench.toggles, "load_plugin", lambda kind, point, expected: named[point.name])
        installed_toggles.cache_clear()

    return add


def planted(name: str, like: str = "channels_last", **changes) -> Toggle:
    return dataclasses.replace(get(like), name=name, **changes)


def test_a_configuration_compiles_where_one_of_its_values_does(plant):
    plant(planted("mine", compiles=("on",)))
    assert compiles({"compile": "default"})
    assert not compiles({"compile": "off"})
    assert compiles({"compile": "off", "mine": "on"})


def test_only_the_modes_with_cuda_graphs_replay_them(plant):
    replaying = {mode for mode in get("compile").values if replays_graphs({"compile": mode})}
    assert replaying == {"reduce-overhead", "max-autotune"}
    plant(planted("mine", replays_graphs=("on",)))
    assert replays_graphs({"compile": "off", "mine": "on"})


def test_unknown_toggles_and_values_have_no_traits():
    configuration = {"warp": 9, "compile": "hyper"}
    assert not compiles(configuration)
    assert noise_group({**configuration, "allocator": "tuned"}) == ""
    assert without_idle(configuration) == configuration
    assert (magnitude("warp", 9), magnitude("warp", "x")) == (9, math.inf)


def test_a_broken_plug_in_leaves_reports_readable(monkeypatch):
    broken = EntryPoint("mine", "no_such_module:MINE", "gpubench.toggles")
    monkeypatch.setattr(gpubench.toggles, "entry_points", lambda group: [broken])
    with pytest.raises(GpubenchError):
        all_toggles()
    assert compiles({"compile": "default"})


def test_what_is_not_named_counts_as_the_first_value_of_a_noisy_toggle(plant):
    assert noise_group({}) == noise_group({"allocator": "system"}) == "glibc's own allocator"
    assert noise_group({"allocator": "jemalloc"}) == ""
    plant(planted("mine", noise_group={"on": "dice"}))
    assert noise_group({"allocator": "tuned", "mine": "on"}) == "dice"
    assert noise_group({"mine": "on"}) == "glibc's own allocator and dice"


def test_the_first_steady_value_is_taken_where_it_can_run(kit, plant, monkeypatch):
    for name in ("GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    mine = planted("mine", noise_group={"off": "dice"})
    plant(mine)
    assert steady_values() == steady_values(kit.scope()) == {"allocator": "tuned", "mine": "on"}
    assert steady_values(kit.scope(kit.AMPERE)) == {"mine": "on"}
    plant(dataclasses.replace(mine, requires={"on": Requirement(device_kinds=("cuda",))}))
    assert steady_values(kit.scope()) == {"allocator": "tuned"}
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.top_pad=1000000")
    assert steady_values(kit.scope()) == {}


def test_prerequisites_are_added_with_the_first_value_that_can_run(kit, plant):
    half = {"on": {"precision": ("fp16-weights", "bf16-autocast")}}
    plant(planted("mine", prerequisites=half), planted("yours", prerequisites={"on": {"mine": ("on",)}}))
    base = {"precision": "fp32", "mine": "off", "yours": "off"}
    cpu = kit.scope()  # which has no float16
    assert with_prerequisites({"mine": "off"}, base, cpu) == {"mine": "off"}
    assert with_prerequisites({"mine": "on"}, base, cpu) == {"mine": "on", "precision": "bf16-autocast"}
    assert with_prerequisites({"mine": "on"}, base, kit.scope(kit.TURING))["precision"] == "fp16-weights"
    assert with_prerequisites({"yours": "on"}, base, cpu) == {"yours": "on", "mine": "on", "precision": "bf16-autocast"}
    met = {**base, "precision": "bf16-autocast"}
    assert with_prerequisites({"mine": "on"}, met, kit.scope(kit.TURING)) == {"mine": "on"}
    # What was asked for stays, and a toggle that does not apply is not brought in.
    assert with_prerequisites({"mine": "on", "precision": "tf32"}, base, cpu)["precision"] == "tf32"
    assert with_prerequisites({"mine": "on"}, base, cpu, held=["precision"]) == {"mine": "on"}
    assert with_prerequisites({"mine": "on"}, {"mine": "off"}, cpu) == {"mine": "on"}


def test_a_prerequisite_that_is_not_met_is_the_reason_why_a_value_cannot_run(kit):
    mine = planted("mine", prerequisites={"on": {"precision": ("bf16-weights", "bf16-autocast")}})
    sentence = "needs precision=bf16-weights or bf16-autocast"
    assert mine.unmet(kit.scope(), "on", {"precision": "fp32"}) == sentence
    assert mine.unmet(kit.scope(), "on", {"compile": "off"}) == sentence
    assert mine.unmet(kit.scope(), "on", {"precision": "bf16-autocast"}) is None
    assert mine.unmet(kit.scope(), "off", {"precision": "fp32"}) is None
    assert mine.unmet(kit.scope(), "on") is None


def test_what_does_nothing_beside_the_others_is_left_out():
    assert without_idle({"tile_size": 0, "tile_overlap": 8}) == {"tile_size": 0}
    assert without_idle({"tile_size": 64, "tile_overlap": 8}) == {"tile_size": 64, "tile_overlap": 8}
    assert without_idle({"tile_overlap": 8}) == {"tile_overlap": 8}


def test_the_whole_input_is_larger_than_every_tile():
    assert sorted([0, 64, 8], key=lambda value: magnitude("tile_size", value)) == [8, 64, 0]
    assert sorted([0, 64, 8], key=lambda value: magnitude("tile_overlap", value)) == [0, 8, 64]


def test_the_batch_size_is_the_configurations_or_the_default():
    assert batch_size({"batch_size": 3}, 8) == 3
    assert batch_size({}, 8) == 8


def test_within_a_stage_toggles_come_after_those_that_they_name(plant):
    before = list(all_toggles())
    plant(planted("a", after=("c", "not installed")), planted("b"), planted("c", after=("b", "precision")))
    layout = [name for name in all_toggles() if name not in before or name == "channels_last"]
    assert layout == ["b", "c", "a", "channels_last"]
    assert [name for name in all_toggles() if name in before] == before


@pytest.mark.parametrize(
    "toggles",
    [{"a": ("b",), "b": ("a",)}, {"a": ("a",)}, {"a": ("compile",)}],
    ids=["circle", "itself", "a later stage"],
)
def test_an_order_that_there_is_not_is_one_sentence(plant, toggles):
    plant(*(planted(name, after=after) for name, after in toggles.items()))
    with pytest.raises(GpubenchError, match="cannot be ordered: a after") as error:
        all_toggles()
    assert error.value.hint == "Remove one `after`; toggles of a later stage always come later."


def test_reading_traits_never_imports_torch():
    code = (
        "import sys; from gpubench.toggles.traits import compiles, noise_group, steady_values;"
        "compiles({'compile': 'default'}), noise_group({}), steady_values(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
