"""`--set`, `--fix` and presets become toggle values in one place."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpubench.errors import GpubenchError
from gpubench.search import presets
from gpubench.search.requested import Requested, assignments, read_request, split_assignment
from gpubench.search.space import ToggleValues
from gpubench.search.strategies import get_strategy, search_space
from tests.search.test_space import builder

PRESET = """
name = "mine"
summary = "two toggles"
strategy = "grid"
[fix]
batch_size = 2
[[technique]]
toggle = "precision"
values = ["bf16-autocast", "bf16-weights"]
[[technique]]
toggle = "channels_last"
values = ["on", "off"]
"""


def read(set_: list[str], fix: list[str], *more: str, **options: str | None) -> Requested:
    """What the texts of `--set` and `--fix` ask for, as the command line reads them."""
    held = dict(split_assignment(text, "--fix") for text in fix)
    return read_request(assignments(set_, "--set"), held, *more, **options)


@pytest.fixture
def preset(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(PRESET)
    return str(path)


def test_set_replaces_the_values_of_a_preset_and_adds_toggles(preset: str) -> None:
    requested = read(["threads=101,102", "precision=bf16-autocast", "threads = 103"], [], preset)
    assert requested.toggle_values(builder()) == [
        ToggleValues("precision", ("bf16-autocast",)),
        ToggleValues("channels_last", ("on",)),  # the baseline's own value is no change
        ToggleValues("threads", (101, 102, 103)),
    ]
    assert requested.preset is not None and requested.preset.strategy == "grid"


def test_fix_wins_over_the_preset(preset: str) -> None:
    made = builder()
    assert read([], ["precision=bf16-weights"], preset).fixed_values(made.scope) == {
        "batch_size": 2, "precision": "bf16-weights",
    }  # fmt: skip
    assert read([], ["batch_size=3"], preset).fixed_values(made.scope) == {"batch_size": 3}


def test_the_default_preset_is_what_nobody_asked_for() -> None:
    assert read([], []).preset is not None
    assert read(["precision=tf32"], []).preset is None
    assert read([], ["precision=tf32"], default=None).preset is None


def test_environments_are_what_is_set_before_python_starts() -> None:
    requested = read(["allocator=tuned,nonsense", "precision=tf32"], [])
    assert requested.environments() == [{"allocator": "tuned"}]


@pytest.mark.parametrize(
    ("set_", "fix", "words"),
    [
        (["precision"], [], "--set 'precision' is not NAME=VALUE"),
        ([], ["precision="], "--fix 'precision=' is not NAME=VALUE"),
        (["precison=tf32"], [], "Did you mean 'precision'"),
        ([], ["warp=9"], "Unknown toggle 'warp'"),
    ],
)
def test_what_is_wrong_on_any_device_is_told_at_once(set_: list[str], fix: list[str], words: str) -> None:
    with pytest.raises(GpubenchError, match=words):
        read(set_, fix)


def test_a_value_is_read_where_the_device_is_known() -> None:
    requested = read(["precision=bf16-autocats"], [])
    with pytest.raises(GpubenchError, match="Did you mean 'bf16-autocast'"):
        requested.toggle_values(builder())
    with pytest.raises(GpubenchError, match="'optimizer' does not apply here"):
        read(["optimizer=fused"], []).toggle_values(builder())
    some = read(["optimizer=fused", "precision=fp32,bf16-autocast"], []).toggle_values(builder())
    assert [entry.toggle for entry in some] == ["optimizer", "precision"]


def test_combinations_are_tried_as_they_are() -> None:
    both = {"precision": "bf16-autocast", "channels_last": "on"}
    requested = read_request({}, {}, together=[both, {"tile_size": "offered", "compile": "reduce-overhead"}])
    assert requested.preset is None
    found = requested.combinations(builder())
    assert found == [both, {"tile_size": 64, "compile": "reduce-overhead"}]
    made, cannot = search_space(builder(), [], get_strategy("each"), together=found).planned
    assert (made.id, made.skip) == ("precision=bf16-autocast,channels_last=on", "")
    assert cannot.skip.startswith("compile=reduce-overhead needs a CUDA device")
    with pytest.raises(GpubenchError, match="Unknown toggle 'precison'"):
        read_request({}, {}, together=[{"precison": "fp32", "compile": "default"}])


COMBINED = """
[[together]]
values = { precision = "bf16-autocast", channels_last = "on" }
modes = ["training"]
"""


def test_a_preset_says_where_a_combination_is_tried(preset: str) -> None:
    Path(preset).write_text(PRESET + COMBINED)
    requested = read_request({}, {}, preset)
    assert requested.combinations(builder(mode="inference")) == []
    assert requested.combinations(builder(mode="training")) == [{"precision": "bf16-autocast", "channels_last": "on"}]


def test_a_bundled_preset_may_name_toggles_of_another_workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "matrices").mkdir()
    lines = ["name = 'tiled'", "summary = 'x'", "[[technique]]", "toggle = 'tile_ramp'", "values = ['computed']"]
    lines += ["[[together]]", "values = { tile_ramp = 'computed' }"]
    (tmp_path / "matrices" / "tiled.toml").write_text("\n".join(lines))
    monkeypatch.setattr(presets, "profiles_folder", lambda: tmp_path)
    requested = read_request({}, {}, "tiled")
    assert requested.toggle_values(builder()) == []
    assert requested.combinations(builder()) == []
