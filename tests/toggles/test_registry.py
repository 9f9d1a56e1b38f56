from __future__ import annotations

import ast
import dataclasses
import pkgutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import gpubench.toggles
from gpubench.errors import GpubenchError
from gpubench.toggles import all_toggles, bundled_toggles, get, installed_toggles, parse_value, usage
from gpubench.toggles.toggle import Conflict, Stage

ORDER = [
    "allocator",
    "batch_size",
    "tile_overlap",
    "tile_size",
    "cudnn_benchmark",
    "threads",
    "precision",
    "channels_last",
    "optimizer",
    "compile",
]
SHARED = {
    "dynamo_records",
    "own",
    "fp32_flags",
    "own_precision",
    "plain_fp32",
    "eager_pass",
    "evidence",
    "kernels",
    "model_context",
    "printed",
    "tf32_probe",
    "step_parts",
    "toggle",
    "traits",
}  # modules that hold no toggle
SHARED_IN_FAMILIES = {"compile_call", "replaced"}  # the same
FOLDER = Path(gpubench.toggles.__file__).parent
BUNDLED = list(bundled_toggles())


@pytest.fixture(autouse=True)
def fresh_registry():
    installed_toggles.cache_clear()
    yield
    installed_toggles.cache_clear()


def install(monkeypatch, *entry_points: EntryPoint) -> None:
    monkeypatch.setattr(gpubench.toggles, "entry_points", lambda group: entry_points)


def test_toggles_come_in_the_order_of_their_stages_then_names():
    assert [name for name in all_toggles() if name in ORDER] == ORDER


def test_every_module_is_a_toggles_or_shared():
    modules = list(pkgutil.iter_modules(gpubench.toggles.__path__))
    assert {module.name for module in modules if not module.ispkg} == SHARED
    families = [str(FOLDER / module.name) for module in modules if module.ispkg]
    assert {module.name for module in pkgutil.iter_modules(families)} - SHARED_IN_FAMILIES == set(BUNDLED)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_card_is_complete(name):
    toggle = get(name)
    assert toggle.name == name
    assert toggle.summary.endswith(".")
    assert toggle.source
    assert toggle.evidence.__doc__
    assert toggle.applies.__doc__.startswith("Applies ")
    assert toggle.values or (toggle.offers and toggle.integers)
    assert set(toggle.requires) <= set(toggle.values)
    assert (toggle.environment is not None) == (toggle.stage is Stage.ENVIRONMENT)
    assert {*toggle.compiles, *toggle.prerequisites, *toggle.noise_group} <= set(toggle.values)
    others = [conflict.other for conflict in toggle.conflicts] + [*toggle.idle_when, *toggle.after]
    others += [other for needed in toggle.prerequisites.values() for other in needed]
    assert set(others) <= set(all_toggles())


@pytest.mark.parametrize("name", [name for name, each in bundled_toggles().items() if each.environment is None])
def test_usage_is_python(name):
    toggle = get(name)
    for value in (*toggle.values, *([7] if toggle.integers else [])):
        ast.parse(toggle.usage(value, None))


def test_get_suggests_the_nearest():
    with pytest.raises(GpubenchError, match="Unknown toggle 'precison'") as error:
        get("precison")
    assert "Did you mean 'precision'?" in error.value.hint


def test_an_offered_value_is_itself():
    assert parse_value(get("precision"), " tf32 ") == "tf32"
    assert parse_value(get("tile_size"), "0") == 0
    assert parse_value(get("batch_size"), "12") == 12


@pytest.mark.parametrize(
    ("name", "text", "message", "hint"),
    [
        ("precision", "bf16-autocats", "Unknown value of toggle precision 'bf16-autocats'", "mean 'bf16-autocast'?"),
        ("compile", "1", "Unknown value of toggle compile '1'", "Known: as-built, default, max-autotune"),
        ("tile_size", "huge", "Unknown value of toggle tile_size 'huge'", "Or a whole number from 0 to 65536."),
        ("batch_size", "0", "batch_size='0' is not allowed", "whole number from 1 to 65536: the first dimension"),
        ("batch_size", "-3", "batch_size='-3' is not allowed", "whole number from 1 to 65536"),
        ("batch_size", "1.5", "batch_size='1.5' is not allowed", "whole number from 1 to 65536"),
        ("batch_size", "many", "batch_size='many' is not allowed", "whole number from 1 to 65536"),
        ("threads", "0", "threads='0' is not allowed", "whole number from 1 to 1024"),
        ("tile_size", "70000", "tile_size='70000' is not allowed", "whole number from 0 to 65536"),
    ],
)
def test_a_value_that_is_not_allowed_is_an_error(name, text, message, hint):
    with pytest.raises(GpubenchError) as error:
        parse_value(get(name), text)
    assert message in error.value.message
    assert hint in error.value.hint


def test_usage_leaves_out_what_plain_code_does_and_keeps_the_order(kit):
    configuration = {
        "compile": "default",
        "channels_last": "off",
        "precision": "bf16-weights",
        "allocator": "tuned",
        "batch_size": 4,
    }
    text = usage(configuration, kit.scope(batch_size=4))
    shell, python = text.split("\n\n")
    assert shell.startswith("# in the shell, before Python starts\nexport GLIBC_TUNABLES=glibc.malloc.mmap_threshold=")
    assert python.startswith("import torch\nmodel = model.to(torch.bfloat16)\n")
    assert python.splitlines()[-1].startswith('model.compile(mode="default")')
    assert "batch_size" not in python
    assert "batch_size = 4" in usage(configuration)
    ast.parse(python)


def test_usage_of_the_baseline_is_empty():
    assert usage({"precision": "fp32", "compile": "off"}) == ""


def test_usage_of_an_unknown_toggle_is_an_error():
    with pytest.raises(GpubenchError, match="Unknown toggle 'warp'"):
        usage({"warp": "on"})


def test_a_conflict_is_the_reason_why_a_value_cannot_run(kit):
    conflict = Conflict(value="on", other="compile", other_values=("default",), reason="they fight")
    toggle = dataclasses.replace(get("channels_last"), conflicts=(conflict,))
    assert toggle.unmet(kit.scope(), "on", {"compile": "off"}) is None
    assert toggle.unmet(kit.scope(), "off", {"compile": "default"}) is None
    assert toggle.unmet(kit.scope(), "on", {"compile": "default"}) == (
        "cannot be combined with compile=default: they fight"
    )


def test_toggles_of_other_distributions_are_found(monkeypatch, tmp_path):
    (tmp_path / "their_toggles.py").write_text(
        "import dataclasses\n"
        "from gpubench.toggles.layout.channels_last import CHANNELS_LAST\n"
        "MINE = dataclasses.replace(CHANNELS_LAST, name='mine')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, EntryPoint("mine", "their_toggles:MINE", "gpubench.toggles"))
    assert get("mine").stage is Stage.LAYOUT
    assert [name for name in all_toggles() if name in ("channels_last", "mine", "optimizer")][1] == "mine"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_module:MINE", "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("gpubench.errors:MINE", "cannot be loaded: AttributeError"),
        ("gpubench.errors:EXIT_OK", "is of type int, not Toggle"),
        ("gpubench.toggles.numerics.precision:PRECISION", "The toggle name 'precision' of entry point"),
    ],
)
def test_a_broken_entry_point_is_one_clear_error(monkeypatch, target, message):
    install(monkeypatch, EntryPoint("mine", target, "gpubench.toggles"))
    with pytest.raises(GpubenchError) as error:
        all_toggles()
    assert message in error.value.message
    assert f"'mine' ({target}, from distribution unknown)" in error.value.message
    assert "uninstall" in error.value.hint


def test_listing_never_imports_torch():
    code = (
        "import sys; from gpubench.toggles import all_toggles, usage;"
        "[toggle.usage(value, None) for toggle in all_toggles().values() for value in toggle.values];"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
